//! What is measured.

mod accounts;
mod encryption;
mod memory;
mod people;
mod rooms;
mod sending;
mod syncing;

use std::sync::Arc;

use anyhow::Result;

use crate::{bench::Bench, options::Scenario};

/// Prepares and measures one scenario; `name` is what its output is called.
pub async fn run(bench: &Arc<Bench>, scenario: Scenario, name: &str) -> Result<()> {
    match scenario {
        Scenario::MemoryIdle => memory::idle(bench, name).await,
        Scenario::MemorySleeping => memory::sleeping(bench, name).await,
        Scenario::DmSend => sending::direct(bench, name).await,
        Scenario::DmLatency => sending::latency(bench, name).await,
        Scenario::RoomFanout => sending::fanout(bench, name).await,
        Scenario::SyncInitial => syncing::initial(bench, name).await,
        Scenario::SyncIdle => syncing::idle(bench, name).await,
        Scenario::MessagesWalk => syncing::walk(bench, name).await,
        Scenario::Register => accounts::register(bench, name).await,
        Scenario::Login => accounts::login(bench, name).await,
        Scenario::CreateRoom => rooms::create(bench, name).await,
        Scenario::StateSend => rooms::state(bench, name).await,
        Scenario::LargeRoomJoin => rooms::large_join(bench, name).await,
        Scenario::KeysClaim => encryption::claim(bench, name).await,
        Scenario::ToDevice => encryption::to_device(bench, name).await,
        Scenario::People => people::run(bench, name).await,
    }
}
