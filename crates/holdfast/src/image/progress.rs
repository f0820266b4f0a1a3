//! How an import or pull is shown: a bar per layer on a terminal, now and then a line elsewhere.
use std::{
    collections::HashMap,
    io::IsTerminal,
    sync::{Arc, Mutex},
    time::Duration,
};

use images::{Progress, Sentences, Step};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Between two lines where there is no terminal; a quick pull prints none.
const LINE_EVERY: Duration = Duration::from_secs(3);

/// Shows on stderr.
#[derive(Clone)]
pub struct Shown {
    shown: Arc<dyn Progress>,
    all: MultiProgress,
}

impl Shown {
    pub fn new() -> Self {
        let all = MultiProgress::new();
        let shown: Arc<dyn Progress> = if std::io::stderr().is_terminal() {
            Arc::new(Bars { all: all.clone(), by_layer: Mutex::default() })
        } else {
            Arc::new(Sentences::new(LINE_EVERY, |line: &str| eprintln!("{line}")))
        };
        Self { shown, all }
    }

    /// Takes the bars away; the result follows.
    pub fn clear(&self) {
        // A terminal that cannot be cleared shows the finished bars: no harm.
        let _ = self.all.clear();
    }
}

impl Progress for Shown {
    fn step(&self, step: Step<'_>) {
        self.shown.step(step);
    }
}

/// A bar per layer.
struct Bars {
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
