//! Files that nobody knows of: a crash, or a database that refused, may leave one between the move to its place and the
//! row that names it.

use std::{collections::HashSet, fs, io, path::PathBuf};

use crate::{
    app::App,
    error::{Error, Result},
    files::hex,
    storage::media,
};

/// Deletes the files of contents that the database does not know; answers how many. A file that is just being uploaded
/// is not touched: what may be one is looked at again while no file is on the way to its row.
///
/// # Errors
/// If the database or the disk fails.
pub async fn sweep(app: &App) -> Result<usize> {
    let mut deleted = 0;
    for first in 0..=u8::MAX {
        if unknown(app, first).await?.is_empty() {
            continue;
        }
        let _nothing_comes = app.files.coming.write().await;
        for file in unknown(app, first).await? {
            tokio::fs::remove_file(&file)
                .await
                .map_err(Error::internal)?;
            tracing::info!(file = %file.display(), "a file that belongs to no media is deleted");
            deleted += 1;
        }
    }
    Ok(deleted)
}

/// The files whose contents' hashes begin with this byte and are not known.
async fn unknown(app: &App, first: u8) -> Result<Vec<PathBuf>> {
    let directories = app.files.directories(first);
    let found = tokio::task::spawn_blocking(move || directories.iter().map(list).collect());
    let found: io::Result<Vec<_>> = found.await.map_err(Error::internal)?;
    let mut found: Vec<_> = found.map_err(Error::internal)?.concat();
    if !found.is_empty() {
        let known = media::blobs(&app.db, first).await?;
        let known: HashSet<String> = known.iter().map(|hash| hex(hash)[2..].to_owned()).collect();
        found.retain(|(rest, _)| !known.contains(rest));
    }
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// The files in a directory, with what their names say of their contents' hashes. What has another name is not this
/// server's.
fn list(directory: &PathBuf) -> io::Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let rest = name.to_str().and_then(|name| name.split('-').next());
        if let Some(rest) = rest
            && rest.len() == 62
            && rest.bytes().all(|byte| byte.is_ascii_hexdigit())
        {
            found.push((rest.to_owned(), entry.path()));
        }
    }
    Ok(found)
}
