//! CPU time, memory and written bytes of process trees, from `/proc`.

use std::{
    collections::HashMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::{Value, json};

const MEGABYTE: f64 = 1_048_576.0;

/// Measures processes and their children from `start` to `stop`.
pub struct Sampler {
    pids: Vec<u32>,
    cpu: Vec<f64>,
    written: u64,
    own_cpu: f64,
    stop: Arc<AtomicBool>,
    memory: JoinHandle<Memory>,
}

/// Memory in bytes. Shared pages count in each process of `rss`, and once in `pss`.
#[derive(Default, Clone, Copy)]
struct Memory {
    /// Of the first process tree, which is the server's.
    rss: u64,
    /// Of all trees, the database's too.
    pss: u64,
}

impl Memory {
    fn of(pids: &[u32]) -> Self {
        let sum = |trees: &[u32], file: &str, key: &str| {
            let processes = trees.iter().flat_map(|pid| tree(*pid));
            processes
                .map(|pid| 1024 * number(&format!("/proc/{pid}/{file}"), key))
                .sum()
        };
        Self {
            rss: sum(&pids[..pids.len().min(1)], "status", "VmRSS:"),
            pss: sum(pids, "smaps_rollup", "Pss:"),
        }
    }

    fn max(self, other: Self) -> Self {
        Self {
            rss: self.rss.max(other.rss),
            pss: self.pss.max(other.pss),
        }
    }
}

impl Sampler {
    pub fn start(pids: &[u32]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, sampled) = (stop.clone(), pids.to_vec());
        let memory = thread::spawn(move || {
            let mut peak = Memory::default();
            // Reading `smaps_rollup` costs the measured process, so it is not read often.
            while !stopped.load(Ordering::Relaxed) {
                peak = peak.max(Memory::of(&sampled));
                thread::park_timeout(Duration::from_secs(2));
            }
            peak.max(Memory::of(&sampled))
        });
        Self {
            cpu: pids.iter().map(|pid| cpu_seconds(*pid)).collect(),
            written: pids.iter().map(|pid| written(*pid)).sum(),
            own_cpu: cpu_seconds(std::process::id()),
            pids: pids.to_vec(),
            stop,
            memory,
        }
    }

    /// What was used since the start, as fields of the output.
    pub fn stop(self, operations: usize) -> Value {
        let each: Vec<f64> = self
            .pids
            .iter()
            .zip(&self.cpu)
            .map(|(pid, before)| cpu_seconds(*pid) - before)
            .collect();
        let own = cpu_seconds(std::process::id()) - self.own_cpu;
        let written = self
            .pids
            .iter()
            .map(|pid| written(*pid))
            .sum::<u64>()
            .saturating_sub(self.written);
        self.stop.store(true, Ordering::Relaxed);
        self.memory.thread().unpark();
        let mut fields = json!({"load_cpu_s": rounded(own)});
        if self.pids.is_empty() {
            return fields;
        }
        let cpu: f64 = each.iter().sum();
        fields["cpu_s"] = json!(rounded(cpu));
        if operations > 0 {
            fields["cpu_ms_per_operation"] =
                json!(rounded(cpu * 1000.0 / float(operations as u64)));
        }
        if each.len() > 1 {
            fields["cpu_s_by_process"] = each.into_iter().map(rounded).collect();
        }
        fields["written_mb"] = json!(rounded(float(written) / MEGABYTE));
        if let Ok(memory) = self.memory.join() {
            fields["rss_mb"] = json!(rounded(float(memory.rss) / MEGABYTE));
            fields["pss_mb"] = json!(rounded(float(memory.pss) / MEGABYTE));
        }
        fields
    }
}

pub fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

#[expect(
    clippy::cast_precision_loss,
    reason = "no count or size here comes near 2^52"
)]
pub fn float(number: u64) -> f64 {
    number as f64
}

/// The process and all that descend from it.
fn tree(root: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if let Ok(pid) = entry.file_name().to_string_lossy().parse()
            && let Some(stat) = Stat::of(pid)
        {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    let mut found = vec![root];
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        found.extend(children.remove(pid).unwrap_or_default());
        next += 1;
    }
    found
}

struct Stat {
    parent: u32,
    /// With the time of children that have ended.
    ticks: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field, the program's name, is in brackets and may contain anything.
        let fields: Vec<&str> = line[line.rfind(')')? + 2..].split(' ').collect();
        let ticks = fields
            .get(11..15)?
            .iter()
            .filter_map(|field| field.parse::<u64>().ok())
            .sum();
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            ticks,
        })
    }
}

fn cpu_seconds(root: u32) -> f64 {
    let ticks = tree(root)
        .into_iter()
        .filter_map(Stat::of)
        .map(|stat| stat.ticks)
        .sum();
    float(ticks) / float(rustix::param::clock_ticks_per_second())
}

fn written(root: u32) -> u64 {
    tree(root)
        .iter()
        .map(|pid| number(&format!("/proc/{pid}/io"), "write_bytes:"))
        .sum()
}

/// The number after a key of a file of `/proc`, 0 if the process has ended.
fn number(file: &str, key: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|line| line.split_whitespace().next())
        .and_then(|word| word.parse().ok())
        .unwrap_or(0)
}
