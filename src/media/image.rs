//! Making one image smaller. Nothing here knows of media or requests; all of it blocks.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Cursor, Seek},
    path::Path,
};

use image::{
    AnimationDecoder as _, DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader,
    ImageResult, Limits,
    codecs::{gif::GifDecoder, jpeg::JpegEncoder, png::PngDecoder, webp::WebPDecoder},
    imageops::FilterType,
    metadata::Orientation,
};

use super::animation;
use crate::storage::media::{ThumbnailMethod, ThumbnailSize};

/// The largest image that is decoded, in pixels: more than any common camera makes.
pub const MAX_PIXELS: u64 = 64_000_000;
/// The largest image that is decoded, in bytes of memory.
pub const MAX_BYTES: u64 = 256 << 20;
/// The quality of JPEG files, of 100.
const QUALITY: u8 = 85;
/// Up to which size the thumbnail of a PNG file is one too, in bytes.
const SMALL_PNG: usize = 64 << 10;

/// Why there is no thumbnail.
#[derive(Debug, thiserror::Error)]
pub enum ThumbnailError {
    /// It is no image, or not one that is known here, or a broken one.
    #[error("this is no image that can be made smaller")]
    NotAnImage,
    /// It takes more memory than an image may.
    #[error("this image is too large to be made smaller")]
    TooLarge,
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] io::Error),
}

/// A thumbnail.
#[derive(Debug)]
pub enum Made {
    /// None that moves: the still one serves.
    Still,
    /// The image itself, being small enough.
    Original(ImageFormat),
    /// A new image.
    New(ImageFormat, Vec<u8>),
}

/// What one sees of an image: how many pixels, and which way up they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// In pixels of the file.
    pub(super) width: u32,
    /// In pixels of the file.
    pub(super) height: u32,
    orientation: Orientation,
}

impl Shape {
    fn of(decoder: &mut impl ImageDecoder) -> Result<Self, ThumbnailError> {
        let (width, height) = decoder.dimensions();
        let orientation = decoder.orientation().map_err(refusal)?;
        Ok(Self {
            width,
            height,
            orientation,
        })
    }

    /// Width and height as they are seen.
    fn shown(self) -> (u32, u32) {
        if turns(self.orientation) {
            (self.height, self.width)
        } else {
            (self.width, self.height)
        }
    }

    /// Makes an image of this shape as small as wanted.
    pub(super) fn fit(self, image: DynamicImage, size: ThumbnailSize) -> DynamicImage {
        match size.method {
            ThumbnailMethod::Scale => scale(image, self.orientation, size),
            ThumbnailMethod::Crop => crop(image, self.orientation, size),
        }
    }
}

/// Makes an image that is not larger than `size`, from the PNG, JPEG, GIF or WebP file at `path`. An image is never
/// made larger. It moves only if that is wanted, and if the file does.
///
/// # Errors
/// If the file is not such an image, or too large.
pub fn shrink(path: &Path, size: ThumbnailSize) -> Result<Made, ThumbnailError> {
    let reader = ImageReader::new(BufReader::new(File::open(path)?)).with_guessed_format()?;
    let format = reader.format().ok_or(ThumbnailError::NotAnImage)?;
    let mut decoder = decoder(reader)?;
    let shape = Shape::of(&mut decoder)?;
    if format == ImageFormat::WebP && !animation::is_honest(path, shape.width, shape.height)? {
        return Err(ThumbnailError::NotAnImage);
    }
    let (width, height) = shape.shown();
    let is_small = width <= size.width && height <= size.height;
    let moves = (size.animated || is_small) && is_animated(path, format).map_err(refusal)?;
    match (size.animated, moves) {
        (true, false) => return Ok(Made::Still),
        (true, true) if !is_small => return animation::shrink(path, format, shape, size),
        (true, true) => return Ok(Made::Original(format)),
        (false, false) if is_small => return Ok(Made::Original(format)),
        (false, _) => {}
    }
    let image = DynamicImage::from_decoder(decoder).map_err(refusal)?;
    encode(&shape.fit(image, size), format).map_err(refusal)
}

/// What an image is, by what it says of itself at its start: its format, and width and height as it is shown, in pixels.
///
/// # Errors
/// If it is none, or too large.
pub fn describe(bytes: &[u8]) -> Result<(ImageFormat, u32, u32), ThumbnailError> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    let format = reader.format().ok_or(ThumbnailError::NotAnImage)?;
    let (width, height) = Shape::of(&mut decoder(reader)?)?.shown();
    Ok((format, width, height))
}

/// The shape of the image in a file.
#[cfg(test)]
pub(super) fn shape_of(path: &Path) -> Result<Shape, ThumbnailError> {
    let reader = ImageReader::new(BufReader::new(File::open(path)?)).with_guessed_format()?;
    Shape::of(&mut decoder(reader)?)
}

/// How much memory a decoder may take.
pub(super) fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_BYTES);
    limits
}

/// Opens an image that is not larger than images may be.
fn decoder<'a, R: BufRead + Seek + 'a>(
    mut reader: ImageReader<R>,
) -> Result<impl ImageDecoder + 'a, ThumbnailError> {
    reader.limits(limits());
    let decoder = reader.into_decoder().map_err(refusal)?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels > MAX_PIXELS || decoder.total_bytes() > MAX_BYTES {
        return Err(ThumbnailError::TooLarge);
    }
    Ok(decoder)
}

pub(super) fn refusal(error: ImageError) -> ThumbnailError {
    match error {
        ImageError::Limits(_) => ThumbnailError::TooLarge,
        // A file that ends too early says so in this way too.
        ImageError::IoError(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::InvalidData
                    | io::ErrorKind::InvalidInput
            ) =>
        {
            ThumbnailError::File(error)
        }
        _ => ThumbnailError::NotAnImage,
    }
}

/// Whether showing the image this way swaps its width and height.
fn turns(orientation: Orientation) -> bool {
    matches!(
        orientation,
        Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH
    )
}

fn is_animated(path: &Path, format: ImageFormat) -> ImageResult<bool> {
    let file = BufReader::new(File::open(path)?);
    Ok(match format {
        ImageFormat::Png => PngDecoder::with_limits(file, limits())?.is_apng()?,
        ImageFormat::WebP => WebPDecoder::new(file)?.has_animation(),
        ImageFormat::Gif => {
            let mut decoder = GifDecoder::new(file)?;
            decoder.set_limits(limits())?;
            decoder.into_frames().nth(1).is_some()
        }
        _ => false,
    })
}

/// Makes the image fit into the size.
fn scale(image: DynamicImage, orientation: Orientation, size: ThumbnailSize) -> DynamicImage {
    let (width, height) = if turns(orientation) {
        (size.height, size.width)
    } else {
        (size.width, size.height)
    };
    let (from_width, from_height) = (image.width(), image.height());
    // The side that has to shrink more decides.
    let by_width =
        u64::from(from_width) * u64::from(height) > u64::from(from_height) * u64::from(width);
    let (width, height) = if by_width {
        (width, proportion(from_height, width, from_width))
    } else {
        (proportion(from_width, height, from_height), height)
    };
    oriented(resize(image, width, height), orientation)
}

/// Makes the image cover the size, and cuts off what juts out at the sides.
fn crop(image: DynamicImage, orientation: Orientation, size: ThumbnailSize) -> DynamicImage {
    let (width, height) = if turns(orientation) {
        (size.height, size.width)
    } else {
        (size.width, size.height)
    };
    let (from_width, from_height) = (image.width(), image.height());
    // The side that has to shrink less decides.
    let by_width =
        u64::from(from_width) * u64::from(height) < u64::from(from_height) * u64::from(width);
    let (cover_width, cover_height) = if by_width {
        (width, proportion(from_height, width, from_width))
    } else {
        (proportion(from_width, height, from_height), height)
    };
    let image = resize(image, cover_width, cover_height);
    // An image that was too small to cover the size is cut to the same aspect.
    let (have_width, have_height) = (image.width(), image.height());
    let is_narrow =
        u64::from(have_width) * u64::from(height) < u64::from(have_height) * u64::from(width);
    let (width, height) = if is_narrow {
        let cut = have_width.min(width);
        (cut, proportion(height, cut, width).min(have_height))
    } else {
        let cut = have_height.min(height);
        (proportion(width, cut, height).min(have_width), cut)
    };
    let (x, y) = ((have_width - width) / 2, (have_height - height) / 2);
    oriented(image.crop_imm(x, y, width, height), orientation)
}

/// `part` of the way that `of` is of `whole`: rounded, and at least one pixel.
fn proportion(part: u32, of: u32, whole: u32) -> u32 {
    let (part, of, whole) = (u64::from(part), u64::from(of), u64::from(whole.max(1)));
    let rounded = (part * of + whole / 2) / whole;
    u32::try_from(rounded).unwrap_or(u32::MAX).max(1)
}

/// Makes the image so large, if it is larger.
fn resize(image: DynamicImage, width: u32, height: u32) -> DynamicImage {
    if width >= image.width() && height >= image.height() {
        return image;
    }
    // Averaging is fast and needs no second copy of a large image; the fine filter does the rest.
    let (rough_width, rough_height) = (width.saturating_mul(2), height.saturating_mul(2));
    let image = if image.width() > rough_width && image.height() > rough_height {
        image.thumbnail_exact(rough_width, rough_height)
    } else {
        image
    };
    image.resize_exact(width, height, FilterType::Triangle)
}

fn oriented(mut image: DynamicImage, orientation: Orientation) -> DynamicImage {
    image.apply_orientation(orientation);
    image
}

/// PNG where one can see through, or where the image was a PNG and stays small as one: text and lines suffer in a JPEG.
/// Otherwise JPEG.
fn encode(image: &DynamicImage, from: ImageFormat) -> ImageResult<Made> {
    let transparent =
        image.color().has_alpha() && image.to_rgba8().pixels().any(|pixel| pixel.0[3] < u8::MAX);
    if transparent || from == ImageFormat::Png {
        let mut bytes = Cursor::new(Vec::new());
        if transparent {
            DynamicImage::ImageRgba8(image.to_rgba8()).write_to(&mut bytes, ImageFormat::Png)?;
        } else {
            DynamicImage::ImageRgb8(image.to_rgb8()).write_to(&mut bytes, ImageFormat::Png)?;
        }
        let bytes = bytes.into_inner();
        if transparent || bytes.len() <= SMALL_PNG {
            return Ok(Made::New(ImageFormat::Png, bytes));
        }
    }
    let mut bytes = Cursor::new(Vec::new());
    let encoder = JpegEncoder::new_with_quality(&mut bytes, QUALITY);
    image.to_rgb8().write_with_encoder(encoder)?;
    Ok(Made::New(ImageFormat::Jpeg, bytes.into_inner()))
}
