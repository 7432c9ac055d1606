//! Pages of a room's history, for which other servers are asked for what is missing here.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    receive::history,
    timeline::{self, EventFilter, Page},
    visibility::{Sight, Viewer},
};
use crate::{app::App, error::Result, rooms::Room, storage::timeline::Range};

/// How long a page that goes forward is kept waiting for what is missing, after which nothing more is asked for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who reads a room, what they want of it, and how much.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// The room.
    pub room: &'a Arc<Room>,
    /// Who reads.
    pub viewer: &'a Viewer,
    /// What they want.
    pub filter: &'a EventFilter,
    /// How many events they want at most.
    pub limit: usize,
}

impl Reading<'_> {
    async fn page(&self, app: &App, range: Range) -> Result<Page> {
        // What is told of what was not here before is decided by how things stood there.
        let sight = Sight::quick(app, self.room, self.viewer).await?;
        timeline::page(app, self.room, &sight, range, self.filter, self.limit).await
    }
}

/// A page that goes back. As long as others have more of what is missing it ends where something is missing still; what
/// nobody can tell is passed over. So each event comes once, and after the ones that follow it. Answers also whether
/// something is missing in what was looked at.
///
/// # Errors
/// If the database fails.
pub async fn backward(app: &App, reading: Reading<'_>, range: Range) -> Result<(Page, bool)> {
    let room = reading.room;
    let mut page = reading.page(app, range).await?;
    // What the page was looked for in: what is not shown may come after a gap too.
    let depths = |page: &Page| page.next.unwrap_or(range.to).depth..=range.from.depth;
    let has_come = history::extend(app, room, &depths(&page)).await?;
    if has_come {
        page = reading.page(app, range).await?;
    }
    let gap = history::next_gap(app, room, &depths(&page)).await?;
    if let Some(gap) = gap.filter(|_| has_come) {
        page.end_at(gap);
    }
    Ok((page, gap.is_some()))
}

/// A page that goes forward. What is missing between its events is fetched first, as far as others have it and it does not
/// take too long; then the page ends before what is missing still, unless it would be empty.
///
/// # Errors
/// If the database fails.
pub async fn forward(app: &App, reading: Reading<'_>, range: Range) -> Result<Page> {
    let (room, started) = (reading.room, Instant::now());
    let mut search = history::Forward::default();
    let mut has_come = false;
    loop {
        let mut page = reading.page(app, range).await?;
        let last = page.next.unwrap_or(range.to).depth;
        let Some(gap) = history::first_gap(app, room, range.from, last).await? else {
            return Ok(page);
        };
        if started.elapsed() < PATIENCE && search.extend(app, room, range.from, gap).await? {
            has_come = true;
            continue;
        }
        if has_come {
            page.end_before(gap);
        }
        return Ok(page);
    }
}
