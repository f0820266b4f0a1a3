//! How a long import or pull tells where it is.
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// One thing that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
    /// Asking the registry what the name means.
    Resolving { name: &'a str },
    /// The layer was here already.
    Present { layer: &'a str },
    /// Bytes of the compressed layer that have arrived; `total` is 0 if unknown.
    Downloading { layer: &'a str, done: u64, total: u64 },
    /// Bytes of the unpacked layer that have been written.
    Unpacking { layer: &'a str, done: u64 },
    /// The layer is complete.
    Unpacked { layer: &'a str },
    /// The image can be used.
    Done { name: &'a str },
}

/// Receives the steps; called often and from several threads, so it must be quick.
pub trait Progress: Send + Sync {
    fn step(&self, step: Step<'_>);
}

/// No progress wanted.
impl Progress for () {
    fn step(&self, _: Step<'_>) {}
}

/// Tells in a sentence, now and then, how far all layers are: for logs and other places that show no bars.
pub struct Sentences<F> {
    every: Duration,
    tell: F,
    sums: Mutex<Sums>,
}

struct Sums {
    last: Instant,
    layers: HashMap<String, Sum>,
}

/// Bytes of one layer.
#[derive(Default)]
struct Sum {
    here: u64,
    /// 0 if unknown.
    total: u64,
    unpacked: u64,
}

impl<F: Fn(&str) + Send + Sync> Sentences<F> {
    /// Calls `tell` at most once in `every`; never for what is done sooner.
    pub fn new(every: Duration, tell: F) -> Self {
        Self { every, tell, sums: Mutex::new(Sums { last: Instant::now(), layers: HashMap::new() }) }
    }
}

impl<F: Fn(&str) + Send + Sync> Progress for Sentences<F> {
    fn step(&self, step: Step<'_>) {
        let mut sums = self.sums.lock();
        match step {
            Step::Downloading { layer, done, total } => {
                let sum = sums.layers.entry(layer.into()).or_default();
                (sum.here, sum.total) = (done, total);
            }
            Step::Unpacking { layer, done } => sums.layers.entry(layer.into()).or_default().unpacked = done,
            Step::Resolving { .. } | Step::Present { .. } | Step::Unpacked { .. } | Step::Done { .. } => return,
        }
        if sums.last.elapsed() >= self.every {
            sums.last = Instant::now();
            (self.tell)(&sums.sentence());
        }
    }
}

impl Sums {
    fn sentence(&self) -> String {
        let sum = |of: fn(&Sum) -> u64| self.layers.values().map(of).sum::<u64>() as f64 / 1e6;
        let (here, total, unpacked) = (sum(|s| s.here), sum(|s| s.total), sum(|s| s.unpacked));
        if here > 0.0 {
            format!("{here:.1} of {total:.1} MB downloaded, {unpacked:.1} MB unpacked")
        } else {
            format!("{unpacked:.1} MB unpacked")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_sum_up_all_layers_and_are_rare() {
        let told = Mutex::new(vec![]);
        let steps = [
            Step::Resolving { name: "a" },
            Step::Downloading { layer: "a", done: 1_000_000, total: 4_000_000 },
            Step::Downloading { layer: "b", done: 500_000, total: 1_000_000 },
            Step::Unpacking { layer: "a", done: 2_000_000 },
            Step::Done { name: "a" },
        ];
        let often = Sentences::new(Duration::ZERO, |text: &str| told.lock().push(text.to_owned()));
        let rare = Sentences::new(Duration::from_secs(3600), |text: &str| told.lock().push(text.to_owned()));
        for step in steps {
            often.step(step);
            rare.step(step);
        }
        let expect = [
            "1.0 of 4.0 MB downloaded, 0.0 MB unpacked",
            "1.5 of 5.0 MB downloaded, 0.0 MB unpacked",
            "1.5 of 5.0 MB downloaded, 2.0 MB unpacked",
        ];
        assert_eq!(*told.lock(), expect);
    }
}
