//! How an import or pull is shown: a bar per layer on a terminal, now and then a line elsewhere.
use std::{
    collections::HashMap,
    io::IsTerminal,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use images::{Progress, Step};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Between two lines where there is no terminal; a quick pull prints none.
const LINE_EVERY: Duration = Duration::from_secs(3);

/// Shows on stderr.
pub enum Shown {
    Bars(Bars),
    Lines(Mutex<Lines>),
}

impl Shown {
    pub fn new() -> Self {
        if std::io::stderr().is_terminal() {
            Self::Bars(Bars::default())
        } else {
            Self::Lines(Mutex::new(Lines::new()))
        }
    }

    /// Takes the bars away; the result follows.
    pub fn clear(&self) {
        if let Self::Bars(bars) = self {
            // A terminal that cannot be cleared shows the finished bars: no harm.
            let _ = bars.all.clear();
        }
    }
}

impl Progress for Shown {
    fn step(&self, step: Step<'_>) {
        match self {
            Self::Bars(bars) => bars.step(step),
            Self::Lines(lines) => {
                let line = lines.lock().unwrap_or_else(PoisonError::into_inner).step(step);
                line.iter().for_each(|line| eprintln!("{line}"));
            }
        }
    }
}

/// Sums over all layers.
pub struct Lines {
    last: Instant,
    /// By layer: bytes here and in all, 0 if unknown, and bytes unpacked.
    layers: HashMap<String, [u64; 3]>,
}

impl Lines {
    fn new() -> Self {
        Self { last: Instant::now(), layers: HashMap::new() }
    }

    /// The line to print, if it is time for one.
    fn step(&mut self, step: Step<'_>) -> Option<String> {
        match step {
            Step::Downloading { layer, done, total } => {
                let sums = self.layers.entry(layer.into()).or_default();
                (sums[0], sums[1]) = (done, total);
            }
            Step::Unpacking { layer, done } => self.layers.entry(layer.into()).or_default()[2] = done,
            Step::Resolving { .. } | Step::Present { .. } | Step::Unpacked { .. } | Step::Done { .. } => return None,
        }
        if self.last.elapsed() < LINE_EVERY {
            return None;
        }
        self.last = Instant::now();
        Some(self.line())
    }

    fn line(&self) -> String {
        let sum = |of: usize| self.layers.values().map(|l| l[of]).sum::<u64>() as f64 / 1e6;
        let unpacked = format!("{:.1} MB unpacked", sum(2));
        if sum(0) > 0.0 { format!("{:.1} of {:.1} MB downloaded, {unpacked}", sum(0), sum(1)) } else { unpacked }
    }
}

/// A bar per layer.
#[derive(Default)]
pub struct Bars {
    all: MultiProgress,
    by_layer: Mutex<HashMap<String, ProgressBar>>,
}

impl Bars {
    fn bar(&self, layer: &str) -> ProgressBar {
        let mut bars = self.by_layer.lock().expect("no holder of this lock panics");
        let made = bars.entry(layer.to_owned()).or_insert_with(|| {
            let style = ProgressStyle::with_template("{prefix:.dim} {msg:12} {bytes:>10} {wide_bar}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let short = layer.rsplit(':').next().unwrap_or(layer).chars().take(12).collect::<String>();
            self.all.add(ProgressBar::no_length()).with_style(style).with_prefix(short)
        });
        made.clone()
    }
}

impl Progress for Bars {
    fn step(&self, step: Step<'_>) {
        let (layer, word, done, total) = match step {
            Step::Resolving { .. } | Step::Done { .. } => return,
            Step::Present { layer } => (layer, "present", 0, 0),
            Step::Downloading { layer, done, total } => (layer, "downloading", done, total),
            Step::Unpacking { layer, done } => (layer, "unpacking", done, 0),
            Step::Unpacked { layer } => (layer, "done", 0, 0),
        };
        let bar = self.bar(layer);
        bar.set_message(word);
        if total > 0 {
            bar.set_length(total);
        }
        if done > 0 {
            bar.set_position(done);
        }
        if matches!(step, Step::Present { .. } | Step::Unpacked { .. }) {
            bar.abandon_with_message(word);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_sum_up_all_layers_and_come_rarely() {
        let mut lines = Lines::new();
        assert_eq!(lines.step(Step::Downloading { layer: "a", done: 1_000_000, total: 4_000_000 }), None);
        lines.last = Instant::now().checked_sub(LINE_EVERY).expect("the machine runs that long");
        let line = lines.step(Step::Downloading { layer: "b", done: 500_000, total: 1_000_000 });
        assert_eq!(line.as_deref(), Some("1.5 of 5.0 MB downloaded, 0.0 MB unpacked"));
        assert_eq!(lines.step(Step::Unpacking { layer: "a", done: 2_000_000 }), None);
        assert_eq!(lines.line(), "1.5 of 5.0 MB downloaded, 2.0 MB unpacked");
    }
}
