use std::io::Cursor;

use futures_util::future;
use image::{
    DynamicImage, Frame, ImageEncoder as _, ImageFormat, Rgb, RgbImage, Rgba, RgbaImage,
    codecs::{gif::GifEncoder, jpeg::JpegEncoder},
};
use reqwest::{Method, StatusCode};

use crate::{
    media::{Sent, ask, fetch, files, path, upload},
    server::{TestServer, User},
};

/// Left half red, right half blue.
pub fn flag(width: u32, height: u32) -> DynamicImage {
    let image = RgbImage::from_fn(width, height, |x, _| {
        if x < width / 2 {
            Rgb([255, 0, 0])
        } else {
            Rgb([0, 0, 255])
        }
    });
    DynamicImage::ImageRgb8(image)
}

pub fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

pub async fn thumbnail(user: &User<'_>, uri: &str, query: &str) -> Sent {
    let path = format!("{}?{query}", path("thumbnail", uri));
    fetch(ask(user, Method::GET, &path)).await
}

/// The image of an answer, which must have said truly what it is.
#[track_caller]
pub fn decoded(sent: &Sent) -> RgbaImage {
    assert_eq!(sent.status, StatusCode::OK);
    let format = image::guess_format(&sent.bytes).expect("an image");
    assert_eq!(sent.header("content-type"), format.to_mime_type());
    let disposition = sent.header("content-disposition");
    assert!(
        disposition.starts_with("inline; filename=thumbnail."),
        "{disposition}"
    );
    // What a page of the same site could do with it must be as little as with any file.
    let policy = sent.header("content-security-policy");
    assert!(
        policy.starts_with("sandbox; default-src 'none'; script-src 'none';"),
        "{policy}"
    );
    assert_eq!(sent.header("cross-origin-resource-policy"), "cross-origin");
    assert_eq!(sent.header("x-content-type-options"), "nosniff");
    image::load_from_memory(&sent.bytes).unwrap().to_rgba8()
}

pub fn is_red(pixel: Rgba<u8>) -> bool {
    pixel[0] > 200 && pixel[2] < 60
}

#[tokio::test]
async fn images_of_each_format_are_made_smaller() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    for format in [
        ImageFormat::Png,
        ImageFormat::Jpeg,
        ImageFormat::Gif,
        ImageFormat::WebP,
    ] {
        // What the client says of the type is not trusted.
        let uri = upload(&alice, "text/html", encoded(&flag(1000, 500), format)).await;
        for (query, size) in [
            ("width=20&height=32&method=crop", (32, 32)),
            ("width=64&height=64&method=crop", (96, 96)),
            ("width=320&height=200&method=scale", (320, 160)),
            ("width=640&height=480", (640, 320)),
            ("width=700&height=10&method=scale&animated=true", (800, 400)),
        ] {
            let sent = thumbnail(&alice, &uri, query).await;
            let image = decoded(&sent);
            assert_eq!(image.dimensions(), size, "{format:?} {query}");
            let (width, height) = size;
            assert!(
                is_red(*image.get_pixel(width / 4, height / 2)),
                "{format:?} {query}"
            );
            assert!(
                !is_red(*image.get_pixel(width * 3 / 4, height / 2)),
                "{format:?} {query}"
            );
        }
        // Nothing is made larger than it is.
        for query in [
            "width=1100&height=900",
            "width=9000&height=9000&method=crop",
        ] {
            let image = decoded(&thumbnail(&alice, &uri, query).await);
            assert_eq!(image.dimensions(), (1000, 500), "{format:?} {query}");
        }
    }
}

#[tokio::test]
async fn a_drawing_stays_sharp_and_a_photo_small() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let mut random = 1_u32;
    let noise = RgbImage::from_fn(1600, 1200, |_, _| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let [red, green, blue, _] = random.to_be_bytes();
        Rgb([red, green, blue])
    });
    for (image, format, expected) in [
        (flag(1600, 1200), ImageFormat::Png, "image/png"),
        (flag(1600, 1200), ImageFormat::Jpeg, "image/jpeg"),
        (noise.into(), ImageFormat::Png, "image/jpeg"),
    ] {
        let uri = upload(&alice, "image/png", encoded(&image, format)).await;
        let sent = thumbnail(&alice, &uri, "width=800&height=600").await;
        assert_eq!(decoded(&sent).dimensions(), (800, 600));
        assert_eq!(sent.header("content-type"), expected);
    }
}

#[tokio::test]
async fn small_images_stay_as_they_are() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let bytes = encoded(&flag(60, 20), ImageFormat::Png);
    let uri = upload(&alice, "image/png", bytes.clone()).await;
    for query in ["width=96&height=96&method=crop", "width=10&height=10"] {
        assert_eq!(thumbnail(&alice, &uri, query).await.bytes, bytes, "{query}");
    }
    assert!(files(&server, "thumbnails").is_empty());
    // Cut to the aspect that was asked for, but not made larger.
    let cut = decoded(&thumbnail(&alice, &uri, "width=32&height=32&method=crop").await);
    assert_eq!(cut.dimensions(), (20, 20));
    let tall = upload(
        &alice,
        "image/png",
        encoded(&flag(3, 5000), ImageFormat::Png),
    )
    .await;
    let image = decoded(&thumbnail(&alice, &tall, "width=9&height=9").await);
    assert_eq!(image.dimensions(), (1, 240));
}

#[tokio::test]
async fn what_one_can_see_through_stays_so() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let mut image = flag(400, 400).to_rgba8();
    image.get_pixel_mut(0, 0)[3] = 254;
    for x in 0..200 {
        for y in 0..400 {
            image.put_pixel(x, y, Rgba([0, 255, 0, 0]));
        }
    }
    let bytes = encoded(&DynamicImage::ImageRgba8(image), ImageFormat::Png);
    let uri = upload(&alice, "image/png", bytes).await;
    let sent = thumbnail(&alice, &uri, "width=96&height=96&method=crop").await;
    assert_eq!(sent.header("content-type"), "image/png");
    let image = decoded(&sent);
    assert_eq!(
        (image.get_pixel(20, 50)[3], image.get_pixel(80, 50)[3]),
        (0, 255)
    );
}

#[tokio::test]
async fn a_photo_taken_sideways_stands_upright() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    // TIFF, little-endian, one entry: orientation (0x0112), a short, 6: "rotate by 90 degrees clockwise".
    let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let mut bytes = Vec::new();
    let mut encoder = JpegEncoder::new(&mut bytes);
    encoder.set_exif_metadata(exif.to_vec()).unwrap();
    let image = flag(1000, 500);
    encoder
        .write_image(image.as_bytes(), 1000, 500, image.color().into())
        .unwrap();
    let uri = upload(&alice, "image/jpeg", bytes).await;
    let scaled = decoded(&thumbnail(&alice, &uri, "width=320&height=240").await);
    assert_eq!(scaled.dimensions(), (120, 240));
    // Left has become top.
    assert!(is_red(*scaled.get_pixel(60, 20)));
    assert!(!is_red(*scaled.get_pixel(60, 220)));
    let cropped = decoded(&thumbnail(&alice, &uri, "width=96&height=96&method=crop").await);
    assert_eq!(cropped.dimensions(), (96, 96));
    assert!(is_red(*cropped.get_pixel(48, 10)));
}

#[tokio::test]
async fn an_animation_becomes_its_first_frame() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new(&mut bytes);
    for color in [Rgba([255, 0, 0, 255]), Rgba([0, 0, 255, 255])] {
        let frame = Frame::new(RgbaImage::from_pixel(50, 50, color));
        encoder.encode_frame(frame).unwrap();
    }
    drop(encoder);
    let uri = upload(&alice, "image/gif", bytes).await;
    for query in [
        "width=96&height=96&method=crop&animated=false",
        "width=96&height=96&method=crop",
        "width=9000&height=9000",
    ] {
        let sent = thumbnail(&alice, &uri, query).await;
        assert_eq!(sent.header("content-type"), "image/jpeg", "{query}");
        let image = decoded(&sent);
        assert_eq!(image.dimensions(), (50, 50));
        assert!(is_red(*image.get_pixel(25, 25)));
    }
}

#[tokio::test]
async fn a_thumbnail_is_made_once_and_again_if_lost() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let bytes = encoded(&flag(500, 500), ImageFormat::Png);
    let (one, two) = (
        upload(&alice, "image/png", bytes.clone()).await,
        upload(&alice, "image/png", bytes).await,
    );
    let query = "width=32&height=32&method=crop";
    let asked =
        (0..20).map(|index| thumbnail(&alice, if index % 2 == 0 { &one } else { &two }, query));
    let sent = future::join_all(asked).await;
    for each in &sent {
        assert_eq!(each.bytes, sent[0].bytes);
    }
    let made = files(&server, "thumbnails");
    assert_eq!(made.len(), 1, "both media have the same content");
    let etag = sent[0].header("etag").to_owned();
    let path = format!("{}?{query}", path("thumbnail", &one));
    let request = ask(&alice, Method::GET, &path).header("if-none-match", &etag);
    assert_eq!(fetch(request).await.status, StatusCode::NOT_MODIFIED);
    let other = thumbnail(&alice, &one, "width=96&height=96&method=crop").await;
    assert_ne!(other.header("etag"), etag);

    // It is sent, not made anew: what is in the file counts.
    std::fs::write(&made[0], "not an image").unwrap();
    assert_eq!(thumbnail(&alice, &one, query).await.bytes, "not an image");
    std::fs::remove_file(&made[0]).unwrap();
    let again = thumbnail(&alice, &one, query).await;
    assert_eq!(again.bytes, sent[0].bytes);
}

#[tokio::test]
async fn the_old_path_makes_thumbnails_if_configured() {
    let server = TestServer::start_with(|config| config.media.unauthenticated = true).await;
    let alice = server.register("alice").await;
    let bytes = encoded(&flag(500, 500), ImageFormat::Png);
    let uri = upload(&alice, "image/png", bytes).await;
    let name = uri.strip_prefix("mxc://").unwrap();
    for version in ["v3", "r0"] {
        let query = "width=32&height=32&method=crop";
        let path = format!("/_matrix/media/{version}/thumbnail/{name}?{query}");
        let url = format!("http://{}{path}", server.address);
        let sent = fetch(server.http.get(url)).await;
        assert!(sent.header("cache-control").starts_with("public"));
        assert_eq!(decoded(&sent).dimensions(), (32, 32));
    }
}

#[tokio::test]
async fn what_is_no_image_has_no_thumbnail() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let png = encoded(&flag(500, 500), ImageFormat::Png);
    for bytes in [
        Vec::new(),
        b"hello".to_vec(),
        b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>".to_vec(),
        b"\x89PNG\r\n\x1a\n".to_vec(),
        png[..png.len() / 2].to_vec(),
        b"GIF89a".to_vec(),
        b"RIFF\0\0\0\0WEBP".to_vec(),
        b"\xff\xd8\xff\xe0".to_vec(),
        // A format that is known to the world but not wanted here.
        b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x02\0\0\0".to_vec(),
    ] {
        let uri = upload(&alice, "image/png", bytes.clone()).await;
        let answer = thumbnail(&alice, &uri, "width=32&height=32").await.answer();
        assert_eq!(answer.body["errcode"], "M_UNKNOWN", "{bytes:?}");
        answer.fails(400, "M_UNKNOWN");
    }
    let uri = upload(&alice, "image/png", png).await;
    for query in [
        "width=0&height=5",
        "width=-1&height=5",
        "width=a&height=5",
        "width=1.5&height=5",
        "width=5&height=5&method=stretch",
        "width=5&height=5&animated=perhaps",
        "width=99999999999999999999&height=5",
    ] {
        let answer = thumbnail(&alice, &uri, query).await.answer();
        answer.fails(400, "M_INVALID_PARAM");
    }
    let answer = thumbnail(&alice, &uri, "height=5").await.answer();
    answer.fails(400, "M_MISSING_PARAM");
}

#[tokio::test]
async fn that_there_is_no_thumbnail_is_found_out_once() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let png = encoded(&flag(500, 500), ImageFormat::Png);
    let query = "width=32&height=32&method=crop";
    for (bytes, status, errcode) in [
        (png[..png.len() / 2].to_vec(), 400, "M_UNKNOWN"),
        (huge_png(), 413, "M_TOO_LARGE"),
    ] {
        let before = files(&server, "blobs");
        let uri = upload(&alice, "image/png", bytes.clone()).await;
        let answer = thumbnail(&alice, &uri, query).await.answer();
        answer.fails(status, errcode);
        // What is in the file now is not looked at any more.
        let mut blobs = files(&server, "blobs").into_iter();
        let file = blobs.find(|file| !before.contains(file)).unwrap();
        std::fs::write(&file, &png).unwrap();
        let answer = thumbnail(&alice, &uri, query).await.answer();
        answer.fails(status, errcode);
        // That of another size is another one.
        let other = thumbnail(&alice, &uri, "width=96&height=96&method=crop").await;
        assert_eq!(decoded(&other).dimensions(), (96, 96));
    }
    // A file that cannot be read may come back.
    let uri = upload(&alice, "image/png", &b"no image"[..]).await;
    let blobs = files(&server, "blobs");
    let is_it = |file: &&std::path::PathBuf| std::fs::read(file).unwrap() == b"no image";
    let file = blobs.iter().find(is_it).unwrap();
    std::fs::remove_file(file).unwrap();
    let answer = thumbnail(&alice, &uri, query).await.answer();
    answer.fails(404, "M_NOT_FOUND");
    std::fs::write(file, &png).unwrap();
    let sent = thumbnail(&alice, &uri, query).await;
    assert_eq!(decoded(&sent).dimensions(), (32, 32));
}

/// The check sum of PNG's chunks.
pub fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |mut crc, byte| {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
        crc
    })
}

/// A few bytes that claim to be an image of 60,000 by 60,000 pixels.
pub fn huge_png() -> Vec<u8> {
    let mut png = encoded(&flag(4, 4), ImageFormat::Png);
    png[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
    let sum = crc(&png[12..29]).to_be_bytes();
    png[29..33].copy_from_slice(&sum);
    png
}

#[tokio::test]
async fn small_files_that_claim_to_be_huge_are_refused() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let png = huge_png();

    let mut gif = encoded(&flag(4, 4), ImageFormat::Gif);
    gif[6..10].fill(0xff);

    let mut jpeg = encoded(&flag(4, 4), ImageFormat::Jpeg);
    let frame = jpeg
        .windows(2)
        .position(|marker| marker == [0xff, 0xc0])
        .unwrap();
    jpeg[frame + 5..frame + 9].fill(0xfe);

    for (name, bytes) in [("png", png), ("gif", gif), ("jpeg", jpeg)] {
        let uri = upload(&alice, "image/png", bytes).await;
        for query in ["width=32&height=32", "width=99999&height=99999"] {
            let answer = thumbnail(&alice, &uri, query).await.answer();
            assert_eq!(
                answer.status,
                StatusCode::PAYLOAD_TOO_LARGE,
                "{name} {query}"
            );
            answer.fails(413, "M_TOO_LARGE");
        }
    }
    assert!(files(&server, "thumbnails").is_empty());
}
