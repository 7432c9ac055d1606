//! Thumbnails that move, and images that mean harm.

use std::io::Cursor;

use image::{
    AnimationDecoder as _, Delay, DynamicImage, Frame, ImageFormat, Rgba, RgbaImage,
    codecs::{gif::GifEncoder, webp::WebPDecoder},
};
use reqwest::{Method, StatusCode};

use crate::{
    fake_server::FakeServer,
    media::{Sent, fetch, files, upload},
    server::TestServer,
    thumbnails::{crc, decoded, encoded, flag, is_red, thumbnail},
};

const RED: Rgba<u8> = Rgba([255, 0, 0, 255]);
const BLUE: Rgba<u8> = Rgba([0, 0, 255, 255]);

/// Red and blue by turns, with some noise, so that a file of this takes a few bytes.
fn images(width: u32, height: u32, count: usize) -> Vec<RgbaImage> {
    let mut state = 1_u32;
    let mut image = |color: Rgba<u8>| {
        RgbaImage::from_fn(width, height, |x, y| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if x < 8 && y < height / 2 {
                Rgba([color[0], (state >> 28) as u8, color[2], 255])
            } else {
                color
            }
        })
    };
    let colors = [RED, BLUE].into_iter().cycle();
    colors.take(count).map(&mut image).collect()
}

fn gif(images: Vec<RgbaImage>, time: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new_with_speed(&mut bytes, 30);
    for image in images {
        let delay = Delay::from_numer_denom_ms(time, 1);
        let frame = Frame::from_parts(image, 0, 0, delay);
        encoder.encode_frame(frame).unwrap();
    }
    drop(encoder);
    bytes
}

/// The chunks of a PNG file: their names and what is in them.
fn chunks(png: &[u8]) -> Vec<([u8; 4], Vec<u8>)> {
    let mut rest = &png[8..];
    let mut chunks = Vec::new();
    while let [a, b, c, d, after @ ..] = rest {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        let name = [after[0], after[1], after[2], after[3]];
        chunks.push((name, after[4..4 + length].to_vec()));
        rest = &after[8 + length..];
    }
    chunks
}

fn png_of(chunks: &[([u8; 4], Vec<u8>)]) -> Vec<u8> {
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    for (name, content) in chunks {
        let named = [&name[..], content].concat();
        png.extend_from_slice(&u32::try_from(content.len()).unwrap().to_be_bytes());
        png.extend_from_slice(&named);
        png.extend_from_slice(&crc(&named).to_be_bytes());
    }
    png
}

fn apng(images: Vec<RgbaImage>, time: u16) -> Vec<u8> {
    let (width, height, count) = (images[0].width(), images[0].height(), images.len());
    let mut all = Vec::new();
    let mut sequence = 0_u32;
    for (number, image) in images.into_iter().enumerate() {
        let file = encoded(&DynamicImage::ImageRgba8(image), ImageFormat::Png);
        let found = chunks(&file);
        if number == 0 {
            all.push(found[0].clone());
            let count = u32::try_from(count).unwrap();
            all.push((*b"acTL", [count.to_be_bytes(), [0; 4]].concat()));
        }
        let mut control = Vec::new();
        for value in [sequence, width, height, 0, 0] {
            control.extend_from_slice(&value.to_be_bytes());
        }
        control.extend_from_slice(&time.to_be_bytes());
        control.extend_from_slice(&1000_u16.to_be_bytes());
        control.extend_from_slice(&[0, 0]);
        all.push((*b"fcTL", control));
        sequence += 1;
        for (_, data) in found.iter().filter(|(name, _)| name == b"IDAT") {
            if number == 0 {
                all.push((*b"IDAT", data.clone()));
            } else {
                all.push((*b"fdAT", [&sequence.to_be_bytes(), &data[..]].concat()));
                sequence += 1;
            }
        }
    }
    all.push((*b"IEND", Vec::new()));
    png_of(&all)
}

fn webp_of(width: u32, height: u32, frames: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let mut body = b"WEBPVP8X\x0a\0\0\0\x12\0\0\0".to_vec();
    body.extend_from_slice(&(width - 1).to_le_bytes()[..3]);
    body.extend_from_slice(&(height - 1).to_le_bytes()[..3]);
    body.extend_from_slice(b"ANIM\x06\0\0\0\0\0\0\0\0\0");
    for (time, chunk) in frames {
        body.extend_from_slice(b"ANMF");
        let length = u32::try_from(16 + chunk.len()).unwrap();
        body.extend_from_slice(&length.to_le_bytes());
        for value in [0, 0, width - 1, height - 1, *time] {
            body.extend_from_slice(&value.to_le_bytes()[..3]);
        }
        body.push(2);
        body.extend_from_slice(chunk);
    }
    let length = u32::try_from(body.len()).unwrap().to_le_bytes();
    [&b"RIFF"[..], &length, &body].concat()
}

fn webp(images: Vec<RgbaImage>, time: u32) -> Vec<u8> {
    let (width, height) = images[0].dimensions();
    let frames = images.into_iter().map(|image| {
        let file = encoded(&DynamicImage::ImageRgba8(image), ImageFormat::WebP);
        (time, file[12..].to_vec())
    });
    webp_of(width, height, &frames.collect::<Vec<_>>())
}

/// The frames of an answer that is an animated WebP.
#[track_caller]
fn frames(sent: &Sent) -> Vec<Frame> {
    assert_eq!(sent.status, StatusCode::OK);
    assert_eq!(sent.header("content-type"), "image/webp");
    assert_eq!(
        sent.header("content-disposition"),
        "inline; filename=thumbnail.webp"
    );
    let decoder = WebPDecoder::new(Cursor::new(&sent.bytes)).unwrap();
    assert!(decoder.has_animation());
    decoder.into_frames().collect_frames().unwrap()
}

#[tokio::test]
async fn animations_of_each_format_move_if_wanted() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    for (name, bytes) in [
        ("gif", gif(images(400, 300, 4), 120)),
        ("apng", apng(images(400, 300, 4), 120)),
        ("webp", webp(images(400, 300, 4), 120)),
    ] {
        let uri = upload(&alice, "image/png", bytes.clone()).await;
        for (query, size) in [
            ("width=20&height=32&method=crop", (32, 32)),
            ("width=96&height=96&method=crop", (96, 96)),
            ("width=320&height=240&method=scale", (320, 240)),
            ("width=300&height=1", (320, 240)),
        ] {
            let moving = thumbnail(&alice, &uri, &format!("{query}&animated=true")).await;
            assert!(moving.bytes.len() < bytes.len());
            let frames = frames(&moving);
            assert_eq!(frames.len(), 4, "{name} {query}");
            for (number, frame) in frames.iter().enumerate() {
                assert_eq!(frame.buffer().dimensions(), size, "{name} {query}");
                assert_eq!(frame.delay().numer_denom_ms(), (120, 1), "{name} {query}");
                let middle = frame.buffer().get_pixel(size.0 / 2, size.1 / 2);
                assert_eq!(is_red(*middle), number % 2 == 0, "{name} {query} {number}");
            }
            for still in ["", "&animated=false"] {
                let sent = thumbnail(&alice, &uri, &format!("{query}{still}")).await;
                let image = decoded(&sent);
                assert_eq!(image.dimensions(), size, "{name} {query}");
                assert!(is_red(*image.get_pixel(size.0 / 2, size.1 / 2)));
                assert!(["image/png", "image/jpeg"].contains(&sent.header("content-type")));
                assert_ne!(sent.header("etag"), moving.header("etag"));
            }
        }
        // What is small enough is not touched.
        for query in ["width=9000&height=9000", "width=600&height=600"] {
            let sent = thumbnail(&alice, &uri, &format!("{query}&animated=true")).await;
            assert_eq!(sent.bytes, bytes, "{name} {query}");
            assert!(is_red(*decoded(&sent).get_pixel(200, 150)));
            let sent = thumbnail(&alice, &uri, query).await;
            assert_ne!(sent.bytes, bytes, "{name} {query}");
            assert_eq!(decoded(&sent).dimensions(), (400, 300));
        }
    }
    // Of each three still and three moving ones, and two still ones of what is small enough.
    assert_eq!(files(&server, "thumbnails").len(), 3 * 8);
}

#[tokio::test]
async fn what_does_not_move_is_the_same_either_way() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    for format in [
        ImageFormat::Png,
        ImageFormat::Jpeg,
        ImageFormat::Gif,
        ImageFormat::WebP,
    ] {
        let uri = upload(&alice, "image/gif", encoded(&flag(400, 300), format)).await;
        let query = "width=32&height=32&method=crop";
        let moving = thumbnail(&alice, &uri, &format!("{query}&animated=true")).await;
        assert_eq!(decoded(&moving).dimensions(), (32, 32));
        let still = thumbnail(&alice, &uri, query).await;
        assert_eq!(moving.bytes, still.bytes);
        assert_eq!(moving.header("etag"), still.header("etag"));
        let again = thumbnail(&alice, &uri, &format!("{query}&animated=true")).await;
        assert_eq!(again.bytes, still.bytes);
    }
    assert_eq!(files(&server, "thumbnails").len(), 4);
    let text = upload(&alice, "image/gif", "no image").await;
    let sent = thumbnail(&alice, &text, "width=32&height=32&animated=true").await;
    sent.answer().fails(400, "M_UNKNOWN");
}

#[tokio::test]
async fn frames_that_nobody_can_see_are_left_out() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let query = "width=32&height=32&method=crop&animated=true";
    let times = async |images, time| {
        let uri = upload(&alice, "image/gif", gif(images, time)).await;
        let frames = frames(&thumbnail(&alice, &uri, query).await);
        let time = |frame: &Frame| frame.delay().numer_denom_ms().0;
        frames.iter().map(time).collect::<Vec<_>>()
    };
    assert_eq!(times(images(200, 200, 6), 20).await, [40, 40, 40]);
    // Browsers take their time where a file says none.
    assert_eq!(times(images(200, 200, 3), 0).await, [100, 100, 100]);
    // The same picture twice is one.
    let mut twice = images(200, 200, 3);
    twice[1] = twice[0].clone();
    assert_eq!(times(twice, 50).await.len(), 2);
}

#[tokio::test]
async fn what_would_become_more_than_it_was_stays_as_it_is() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    // A few colors are little in a GIF, and all that lies between them much in anything else.
    let mut state = 1_u32;
    let images = (0..3).map(|_| {
        RgbaImage::from_fn(400, 300, |_, _| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if state >> 31 == 0 { RED } else { BLUE }
        })
    });
    let bytes = gif(images.collect(), 100);
    let uri = upload(&alice, "image/gif", bytes.clone()).await;
    let sent = thumbnail(&alice, &uri, "width=320&height=240&animated=true").await;
    assert_eq!(sent.bytes, bytes);
    assert_eq!(sent.header("content-type"), "image/gif");
    let sent = thumbnail(&alice, &uri, "width=96&height=96&method=crop&animated=true").await;
    assert!(frames(&sent).len() == 3 && sent.bytes.len() < bytes.len());
}

#[tokio::test]
async fn other_servers_get_thumbnails_that_move() {
    let (server, fake) = tokio::join!(TestServer::federated(), FakeServer::start());
    let alice = server.register("alice").await;
    let uri = upload(&alice, "image/gif", gif(images(200, 200, 3), 100)).await;
    let id = uri.rsplit('/').next().unwrap();
    for (animated, content_type) in [
        ("&animated=true", "image/webp"),
        ("", "image/jpeg"),
        ("&animated=false", "image/jpeg"),
    ] {
        let query = "width=32&height=32&method=crop";
        let path = format!("/_matrix/federation/v1/media/thumbnail/{id}?{query}{animated}");
        let method = Method::GET;
        let authorization = fake.authorization(server.name(), &method, &path, None);
        let url = format!("http://{}{path}", server.address);
        let sent = fetch(server.http.get(url).header("authorization", authorization)).await;
        let text = String::from_utf8_lossy(&sent.bytes);
        assert!(
            text.contains(&format!("\r\nContent-Type: {content_type}\r\n")),
            "{animated}: {text}"
        );
    }
}

#[tokio::test]
async fn broken_animations_end_where_they_break() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let query = "width=32&height=32&method=crop&animated=true";
    for (name, whole) in [
        ("gif", gif(images(100, 100, 5), 100)),
        ("webp", webp(images(100, 100, 5), 100)),
        ("apng", apng(images(100, 100, 5), 100)),
    ] {
        let part = whole[..whole.len() * 7 / 10].to_vec();
        let uri = upload(&alice, "image/gif", part).await;
        let sent = thumbnail(&alice, &uri, query).await;
        let count = frames(&sent).len();
        assert!((2..5).contains(&count), "{name}: {count}");
        for length in (0..whole.len()).step_by(whole.len() / 8 + 1) {
            let uri = upload(&alice, "image/gif", whole[..length].to_vec()).await;
            for query in [
                query,
                "width=9000&height=9000&animated=true",
                "width=32&height=32",
            ] {
                let sent = thumbnail(&alice, &uri, query).await;
                let status = sent.status;
                assert!(
                    matches!(status.as_u16(), 200 | 400),
                    "{name} {length}: {status}"
                );
            }
        }
    }
}

#[tokio::test]
async fn images_that_unpack_to_more_than_they_say_are_refused() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    // A small PNG whose data is that of a large one.
    let large = encoded(&DynamicImage::new_luma8(6000, 6000), ImageFormat::Png);
    let mut small = chunks(&encoded(&DynamicImage::new_luma8(4, 4), ImageFormat::Png));
    let data = chunks(&large)
        .into_iter()
        .filter(|(name, _)| name == b"IDAT");
    let place = small.iter().position(|(name, _)| name == b"IDAT").unwrap();
    small.splice(place..=place, data);
    let png = png_of(&small);
    // A GIF with a frame that is larger than the whole.
    let mut gif = gif(images(40, 40, 2), 100);
    let frame = gif
        .windows(9)
        .position(|it| it == [0x2c, 0, 0, 0, 0, 40, 0, 40, 0])
        .unwrap();
    gif[frame + 5..frame + 9].fill(0xff);
    // The same as a WebP: its frame says by itself how large it is.
    let mut vp8 = b"VP8 \x40\0\0\0\x10\x02\0\x9d\x01\x2a\xff\x3f\xff\x3f".to_vec();
    vp8.resize(8 + 0x40, 0);
    let moving = webp_of(40, 40, &[(100, vp8.clone()), (100, vp8.clone())]);
    let mut still = b"WEBPVP8X\x0a\0\0\0\0\0\0\0\x27\0\0\x27\0\0".to_vec();
    still.extend_from_slice(&vp8);
    let length = u32::try_from(still.len()).unwrap().to_le_bytes();
    let still = [&b"RIFF"[..], &length, &still].concat();
    for (name, bytes) in [
        ("png", png),
        ("gif", gif),
        ("moving webp", moving),
        ("webp", still),
    ] {
        assert!(bytes.len() < 200_000, "{name}: {}", bytes.len());
        let uri = upload(&alice, "image/png", bytes).await;
        for query in [
            "width=16&height=16&method=crop",
            "width=16&height=16&method=crop&animated=true",
        ] {
            let sent = thumbnail(&alice, &uri, query).await;
            let status = sent.status.as_u16();
            // A PNG is read as far as it says that there is something.
            assert!(
                matches!(status, 400 | 413) || (name == "png" && status == 200),
                "{name}: {status}"
            );
        }
    }
}

#[tokio::test]
async fn files_of_nothing_but_chunks_are_refused() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let whole = webp(images(40, 40, 3), 100);
    let query = "width=16&height=16&method=crop&animated=true";
    for (count, is_good) in [(1000, true), (100_000, false)] {
        let body = [&whole[12..], &b"NONE\0\0\0\0".repeat(count)].concat();
        let length = u32::try_from(body.len() + 4).unwrap().to_le_bytes();
        let file = [&b"RIFF"[..], &length, b"WEBP", &body].concat();
        let uri = upload(&alice, "image/webp", file).await;
        let sent = thumbnail(&alice, &uri, query).await;
        if is_good {
            assert_eq!(frames(&sent).len(), 3);
        } else {
            sent.answer().fails(400, "M_UNKNOWN");
        }
    }
}
