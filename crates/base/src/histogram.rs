//! How long things took, counted in steps.
use std::time::Duration;

/// Upper bounds of the steps, in seconds; longer ones are counted in all only.
pub const BOUNDS_S: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Counts of durations.
#[derive(Debug, Clone, Default)]
pub struct Histogram {
    counts: [u64; BOUNDS_S.len()],
    count: u64,
    sum: Duration,
}

impl Histogram {
    /// Counts one.
    pub fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        if let Some(count) = BOUNDS_S.iter().position(|bound| seconds <= *bound).map(|at| &mut self.counts[at]) {
            *count += 1;
        }
        self.count += 1;
        self.sum += took;
    }

    /// For every bound, in seconds, how many took at most so long.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let mut below = 0;
        BOUNDS_S.iter().zip(self.counts).map(move |(bound, count)| {
            below += count;
            (*bound, below)
        })
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// All of them together, in seconds.
    pub fn sum_s(&self) -> f64 {
        self.sum.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_hold_all_that_is_no_longer() {
        let mut histogram = Histogram::default();
        for ms in [1, 2, 300, 20_000] {
            histogram.observe(Duration::from_millis(ms));
        }
        let steps: Vec<u64> = histogram.cumulative().map(|(_, count)| count).collect();
        assert_eq!(steps, [1, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3]);
        assert_eq!((histogram.count(), histogram.sum_s()), (4, 20.303));
    }
}
