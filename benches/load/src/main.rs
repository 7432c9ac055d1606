//! Measures any Matrix homeserver through its Client-Server API.
//!
//! - `options`: the command line and the list of scenarios
//! - `bench`: what the scenarios share; `client`: requests to the server
//! - `measure`: latencies and the line that is printed; `process`: CPU time and memory of the server
//! - `scenarios`: what is measured

mod bench;
mod client;
mod measure;
mod options;
mod process;
mod scenarios;

use anyhow::Result;
use bench::Bench;
use clap::{Parser, ValueEnum};
use options::Options;
use std::process::ExitCode;

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<ExitCode> {
    let bench = Bench::new(Options::parse())?;
    let mut code = ExitCode::SUCCESS;
    for _ in 0..bench.options.repeat {
        for scenario in &bench.options.scenarios {
            let name = scenario
                .to_possible_value()
                .map(|value| value.get_name().to_owned())
                .unwrap_or_default();
            eprintln!("{} {name}", bench.options.name);
            if let Err(error) = scenarios::run(&bench, *scenario, &name).await {
                eprintln!("  {name} failed: {error:#}");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}
