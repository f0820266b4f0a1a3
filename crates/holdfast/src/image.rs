//! `holdfast image`: the same image store that a running daemon uses; works with the daemon running or stopped.
use std::{
    collections::HashMap,
    process::ExitCode,
    sync::{Arc, Mutex},
};

use images::{Images, Progress, RegistryConfig, Step};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::{
    Outcome,
    cli::{DataDir, ImageArgs, ImageCommand},
    client::{Error, get::align},
    errors::said,
};

pub async fn run(args: ImageArgs) -> Outcome {
    match args.command {
        ImageCommand::Import { file, name, data } => {
            let bars = Bars::default();
            let found = open(&data, RegistryConfig::default())?.import(&file, name.as_deref(), &bars).await?;
            bars.clear();
            for image in found {
                let names = if image.names.is_empty() { vec![image.image_ref().to_owned()] } else { image.names };
                println!("{}", names.join("\n"));
            }
        }
        ImageCommand::Pull { name, data, insecure_registry } => {
            let config = RegistryConfig { plain_http: insecure_registry, ..RegistryConfig::default() };
            let reference = images::normalize(&name)?;
            let bars = Arc::new(Bars::default());
            let image = open(&data, config)?.pull(&reference, &[], bars.clone()).await?;
            bars.clear();
            println!("{}", image.image_ref());
        }
        ImageCommand::List { data } => list(&open(&data, RegistryConfig::default())?)?,
        ImageCommand::Rm { name, data } => {
            if !open(&data, RegistryConfig::default())?.remove(&name)? {
                return said(format!("no image {name:?} here; `holdfast image list` shows what there is"));
            }
            println!("{name} removed");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn open(data: &DataDir, config: RegistryConfig) -> Result<Images, Error> {
    Ok(Images::open(base::Layout::new(&data.data_dir).images(), config)?)
}

fn list(images: &Images) -> Result<(), Error> {
    let mut lines = vec![["NAME", "ID", "SIZE"].map(str::to_owned).to_vec()];
    for image in images.list()? {
        let id = image.id.trim_start_matches("sha256:").chars().take(12).collect();
        let names = if image.names.is_empty() { vec![image.image_ref().to_owned()] } else { image.names.clone() };
        let size = format!("{:.1} MB", image.size as f64 / 1e6);
        lines.extend(names.into_iter().map(|name| vec![name, String::clone(&id), size.clone()]));
    }
    align(&lines).iter().for_each(|line| println!("{line}"));
    Ok(())
}

/// A bar per layer on a terminal; nothing elsewhere.
#[derive(Default)]
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

    fn clear(&self) {
        // A terminal that cannot be cleared shows the finished bars: no harm.
        let _ = self.all.clear();
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
