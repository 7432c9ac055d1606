//! Making an animation smaller: decoded frame by frame, shrunk, and written as an animated WebP, whose frames are images
//! without loss. Nothing here knows of media or requests; all of it blocks.
//!
//! The container is that of "WebP Container Specification", RFC 9649.

use std::{
    fs::File,
    io::{self, BufReader, Cursor, Read as _},
    path::Path,
};

use image::{
    AnimationDecoder as _, Delay, DynamicImage, ExtendedColorType, Frames, ImageDecoder as _,
    ImageFormat, ImageResult, RgbaImage,
    codecs::{
        gif::GifDecoder,
        png::PngDecoder,
        webp::{WebPDecoder, WebPEncoder},
    },
    imageops::crop_imm,
    metadata::LoopCount,
};

use super::image::{Made, Shape, ThumbnailError, limits, refusal};
use crate::storage::media::{ThumbnailMethod, ThumbnailSize};

/// What an animation may cost.
#[derive(Clone, Copy, Debug)]
struct Most {
    /// Pixels of one frame, and of all frames, that are decoded.
    canvas: u64,
    decoded: u64,
    /// Pixels of all frames, and bytes, that are written.
    written: u64,
    bytes: u64,
}

const MOST: Most = Most {
    canvas: 8 << 20,
    decoded: 128 << 20,
    written: 64 << 20,
    bytes: 16 << 20,
};
/// The shortest time for which a frame is shown, in milliseconds. Frames that come sooner are left out.
const LEAST_TIME: u32 = 40;
/// What browsers make of frames with no time to speak of, in milliseconds.
const NO_TIME: u32 = 10;
const USUAL_TIME: u32 = 100;
/// How many chunks a WebP file may have: a few for each frame, of which no animation has so many.
const CHUNKS: usize = 1 << 16;

/// Makes an animation that is not larger than `size` from one that is larger, in the file at `path`.
///
/// An animation that is too much work is [`Made::Still`]; so is one of which would become more than it was, unless it can
/// be shown as it is.
///
/// # Errors
/// If the file cannot be read, or is no animation.
pub(super) fn shrink(
    path: &Path,
    format: ImageFormat,
    shape: Shape,
    size: ThumbnailSize,
) -> Result<Made, ThumbnailError> {
    shrink_within(MOST, path, format, shape, size)
}

fn shrink_within(
    most: Most,
    path: &Path,
    format: ImageFormat,
    shape: Shape,
    size: ThumbnailSize,
) -> Result<Made, ThumbnailError> {
    let canvas = u64::from(shape.width) * u64::from(shape.height);
    if canvas > most.canvas {
        return Ok(Made::Still);
    }
    let length = std::fs::metadata(path)?.len();
    let otherwise = match size.method {
        ThumbnailMethod::Scale => Made::Original(format),
        ThumbnailMethod::Crop => Made::Still,
    };
    let (frames, loops) = frames(path, format).map_err(refusal)?;
    let (mut writer, mut decoded) = (Writer::default(), 0);
    let mut shown: Option<(RgbaImage, u32)> = None;
    for frame in frames {
        // What is broken ends there, as in browsers.
        let Ok(frame) = frame else { break };
        decoded += canvas;
        if decoded > most.decoded {
            return Ok(Made::Still);
        }
        let time = time(frame.delay());
        if let Some((_, before)) = &mut shown
            && *before < LEAST_TIME
        {
            *before = before.saturating_add(time);
            continue;
        }
        let image = DynamicImage::ImageRgba8(frame.into_buffer());
        let image = shape.fit(image, size).into_rgba8();
        if let Some((image, time)) = shown.replace((image, time)) {
            writer.add(&image, time).map_err(refusal)?;
        }
        if writer.pixels > most.written || writer.bytes.len() as u64 > length {
            return Ok(otherwise);
        }
    }
    if let Some((image, time)) = shown {
        writer.add(&image, time).map_err(refusal)?;
    }
    if writer.frames < 2 {
        return Ok(Made::Still);
    }
    let bytes = writer.finish(loops);
    Ok(match bytes.len() as u64 {
        many if many > length => otherwise,
        many if many > most.bytes => Made::Still,
        _ => Made::New(ImageFormat::WebP, bytes),
    })
}

/// The frames of an animation, each as it is seen, and how often it is played; 0 is for ever.
fn frames(path: &Path, format: ImageFormat) -> ImageResult<(Frames<'static>, u16)> {
    let file = BufReader::new(File::open(path)?);
    let (count, frames) = match format {
        ImageFormat::Gif => {
            let mut decoder = GifDecoder::new(file)?;
            decoder.set_limits(limits())?;
            (decoder.loop_count(), decoder.into_frames())
        }
        ImageFormat::WebP => {
            let decoder = WebPDecoder::new(file)?;
            (decoder.loop_count(), decoder.into_frames())
        }
        _ => {
            let decoder = PngDecoder::with_limits(file, limits())?.apng()?;
            (decoder.loop_count(), decoder.into_frames())
        }
    };
    let count = match count {
        LoopCount::Infinite => 0,
        LoopCount::Finite(count) => u16::try_from(count.get()).unwrap_or(u16::MAX),
    };
    Ok((frames, count))
}

/// How long a frame is shown, in milliseconds.
fn time(delay: Delay) -> u32 {
    let (numerator, denominator) = delay.numer_denom_ms();
    match numerator / denominator.max(1) {
        time if time <= NO_TIME => USUAL_TIME,
        time => time,
    }
}

/// Whether no frame of a WebP file is larger than the file says that it is: a decoder makes room for a frame before it
/// looks whether it fits. Nobody goes through a file of more chunks than any animation has.
pub(super) fn is_honest(path: &Path, width: u32, height: u32) -> io::Result<bool> {
    let mut file = BufReader::new(File::open(path)?);
    let end = file.get_ref().metadata()?.len();
    let end = i64::try_from(end).map_err(io::Error::other)?;
    // "RIFF", a length, and "WEBP".
    let (mut read, mut position) = (0, 12);
    for _ in 0..CHUNKS {
        if position + 8 > end {
            return Ok(true);
        }
        // What is in the buffer already is not read again.
        file.seek_relative(position - read)?;
        let mut head = [0; 8];
        file.read_exact(&mut head)?;
        let length = i64::from(u32::from_le_bytes([head[4], head[5], head[6], head[7]]));
        position += 8;
        read = position;
        match &head[..4] {
            // A frame has chunks of its own, behind its place and its time.
            b"ANMF" => position += 16,
            name => {
                if name == b"VP8 " && position + 10 <= end {
                    let mut start = [0; 10];
                    file.read_exact(&mut start)?;
                    read += 10;
                    let side = |low, high| u32::from(u16::from_le_bytes([low, high]) & 0x3fff);
                    if side(start[6], start[7]) > width || side(start[8], start[9]) > height {
                        return Ok(false);
                    }
                }
                position += length + (length & 1);
            }
        }
    }
    Ok(false)
}

/// An animated WebP as it grows.
#[derive(Debug, Default)]
struct Writer {
    /// The chunks of the frames.
    bytes: Vec<u8>,
    /// Where the last frame has its time in them.
    time: usize,
    /// What is seen after the last frame.
    last: Option<RgbaImage>,
    frames: usize,
    pixels: u64,
}

impl Writer {
    /// Adds an image to be shown for some milliseconds. Only what differs from the one before is written.
    fn add(&mut self, image: &RgbaImage, time: u32) -> ImageResult<()> {
        let (x, y, width, height) = match &self.last {
            None => (0, 0, image.width(), image.height()),
            Some(last) => match difference(last, image) {
                Some(part) => part,
                None => {
                    self.extend(time);
                    return Ok(());
                }
            },
        };
        let part = crop_imm(image, x, y, width, height).to_image();
        let mut file = Cursor::new(Vec::new());
        WebPEncoder::new_lossless(&mut file).encode(
            &part,
            width,
            height,
            ExtendedColorType::Rgba8,
        )?;
        // Behind "RIFF", a length, and "WEBP" there is the one chunk of the image.
        let chunk = file.into_inner().split_off(12);
        let mut frame = Vec::with_capacity(16);
        for number in [x / 2, y / 2, width - 1, height - 1, time.min(0xff_ffff)] {
            frame.extend_from_slice(&number.to_le_bytes()[..3]);
        }
        // It replaces what is under it, and stays.
        frame.push(0b10);
        self.bytes.extend_from_slice(b"ANMF");
        let length = u32::try_from(frame.len() + chunk.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.time = self.bytes.len() + 12;
        self.bytes.extend_from_slice(&frame);
        self.bytes.extend_from_slice(&chunk);
        self.frames += 1;
        self.pixels += u64::from(width) * u64::from(height);
        self.last = Some(image.clone());
        Ok(())
    }

    /// Shows the last frame for longer.
    fn extend(&mut self, more: u32) {
        if let Some(place) = self.bytes.get_mut(self.time..self.time + 3) {
            let time = u32::from_le_bytes([place[0], place[1], place[2], 0]);
            let time = time.saturating_add(more).min(0xff_ffff);
            place.copy_from_slice(&time.to_le_bytes()[..3]);
        }
    }

    /// The whole file.
    fn finish(self, loops: u16) -> Vec<u8> {
        let (width, height) = self.last.map_or((1, 1), |last| last.dimensions());
        let mut file = Vec::with_capacity(self.bytes.len() + 44);
        file.extend_from_slice(b"RIFF");
        let length = u32::try_from(4 + 18 + 14 + self.bytes.len()).unwrap_or(u32::MAX);
        file.extend_from_slice(&length.to_le_bytes());
        file.extend_from_slice(b"WEBPVP8X\x0a\0\0\0");
        // It moves, and one may see through it.
        file.extend_from_slice(&[0b0001_0010, 0, 0, 0]);
        file.extend_from_slice(&(width - 1).to_le_bytes()[..3]);
        file.extend_from_slice(&(height - 1).to_le_bytes()[..3]);
        file.extend_from_slice(b"ANIM\x06\0\0\0\0\0\0\0");
        file.extend_from_slice(&loops.to_le_bytes());
        file.extend_from_slice(&self.bytes);
        file
    }
}

/// The smallest part (x, y, width, height) outside of which two images of the same size are the same. It begins at even
/// pixels, as the parts of an animated WebP do.
fn difference(before: &RgbaImage, after: &RgbaImage) -> Option<(u32, u32, u32, u32)> {
    let differs = |x, y| before.get_pixel(x, y) != after.get_pixel(x, y);
    let (width, height) = after.dimensions();
    let row = |y: &u32| (0..width).any(|x| differs(x, *y));
    let top = (0..height).find(row)?;
    let bottom = (top..height).rev().find(row)?;
    let column = |x: &u32| (top..=bottom).any(|y| differs(*x, y));
    let left = (0..width).find(column)?;
    let right = (left..width).rev().find(column)?;
    let (left, top) = (left & !1, top & !1);
    Some((left, top, right - left + 1, bottom - top + 1))
}

#[cfg(test)]
mod tests {
    use image::{Frame, Rgba, codecs::gif::GifEncoder};

    use super::*;
    use crate::media::image::shape_of;

    #[test]
    fn what_costs_too_much_does_not_move() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut encoder = GifEncoder::new(File::create(file.path()).unwrap());
        let frames = (0..10_u8).map(|number| {
            let image = RgbaImage::from_fn(64, 64, |x, y| {
                let value = (x * 7 + y * 13 + u32::from(number) * 31) % 256;
                Rgba([u8::try_from(value).unwrap_or(0), number, 0, 255])
            });
            Frame::from_parts(image, 0, 0, Delay::from_numer_denom_ms(100, 1))
        });
        encoder.encode_frames(frames).unwrap();
        drop(encoder);
        let shape = shape_of(file.path()).unwrap();
        let size = |method| ThumbnailSize {
            width: 32,
            height: 32,
            method,
            animated: true,
        };
        let made = |change: fn(&mut Most), method| {
            let mut most = MOST;
            change(&mut most);
            let size = size(method);
            match shrink_within(most, file.path(), ImageFormat::Gif, shape, size).unwrap() {
                Made::Still => "still",
                Made::Original(_) => "original",
                Made::New(_, _) => "new",
            }
        };
        let (scale, crop) = (ThumbnailMethod::Scale, ThumbnailMethod::Crop);
        assert_eq!(made(|_| {}, scale), "new");
        assert_eq!(made(|most| most.canvas = 64 * 64 - 1, scale), "still");
        assert_eq!(made(|most| most.decoded = 10 * 64 * 64, scale), "new");
        assert_eq!(made(|most| most.decoded = 10 * 64 * 64 - 1, scale), "still");
        assert_eq!(
            made(|most| most.written = 8 * 32 * 32 - 1, scale),
            "original"
        );
        assert_eq!(made(|most| most.written = 8 * 32 * 32 - 1, crop), "still");
        assert_eq!(made(|most| most.bytes = 1000, scale), "still");
    }

    #[test]
    fn frames_that_are_larger_than_the_whole_are_found() {
        let mut frame = b"VP8 \x0a\0\0\0\x10\x02\0\x9d\x01\x2a".to_vec();
        frame.extend_from_slice(&[40, 0, 30, 0]);
        let whole = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let place = [&b"ANMF\x22\0\0\0"[..], &[0; 16]].concat();
        for (parts, most, expected) in [
            (vec![&whole[..], &frame], (40, 30), true),
            (vec![&whole[..], &frame], (39, 30), false),
            (
                vec![&whole[..], &place, &frame, &place, &frame],
                (40, 30),
                true,
            ),
            (
                vec![&whole[..], &place, &frame, &place, &frame],
                (40, 29),
                false,
            ),
            // What is cut off is not this one's to complain of.
            (vec![&whole[..], &place, &frame[..12]], (1, 1), true),
            (vec![&whole[..9]], (1, 1), true),
        ] {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), parts.concat()).unwrap();
            let honest = is_honest(file.path(), most.0, most.1).unwrap();
            assert_eq!(honest, expected, "{parts:?} {most:?}");
        }
    }

    #[test]
    fn only_what_moves_is_written() {
        let red = RgbaImage::from_pixel(64, 48, Rgba([255, 0, 0, 255]));
        let mut spot = red.clone();
        spot.put_pixel(7, 9, Rgba([0, 0, 255, 128]));
        spot.put_pixel(10, 9, Rgba([0, 0, 255, 0]));
        assert_eq!(difference(&red, &red), None);
        assert_eq!(difference(&red, &spot), Some((6, 8, 5, 2)));
        let mut writer = Writer::default();
        for (image, time) in [(&red, 50), (&spot, 60), (&spot, 7), (&red, 80)] {
            writer.add(image, time).unwrap();
        }
        assert_eq!((writer.frames, writer.pixels), (3, 64 * 48 + 2 * 10));
        let bytes = writer.finish(3);
        let decoder = WebPDecoder::new(Cursor::new(bytes)).unwrap();
        assert!(decoder.has_animation());
        let loops = decoder.loop_count();
        assert!(matches!(loops, LoopCount::Finite(count) if count.get() == 3));
        let frames = decoder.into_frames().collect_frames().unwrap();
        let times: Vec<_> = frames
            .iter()
            .map(|frame| frame.delay().numer_denom_ms().0)
            .collect();
        assert_eq!(times, [50, 67, 80]);
        for (frame, image) in frames.iter().zip([&red, &spot, &red]) {
            assert!(frame.buffer() == image);
        }
    }
}
