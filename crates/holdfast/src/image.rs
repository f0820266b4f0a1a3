//! `holdfast image`: the same image store that a running daemon uses; works with the daemon running or stopped.
mod progress;

use std::{process::ExitCode, sync::Arc};

use images::{Images, RegistryConfig};

use crate::{
    Outcome,
    cli::{DataDir, ImageArgs, ImageCommand},
    client::{Error, get::align},
    errors::{Doing, said, say},
    registries,
};
use progress::Shown;

pub async fn run(args: ImageArgs) -> Outcome {
    match args.command {
        ImageCommand::Import { file, name, data } => {
            let shown = Shown::new();
            let found = open(&data, RegistryConfig::default())?.import(&file, name.as_deref(), &shown).await;
            shown.clear();
            for image in found? {
                let names = if image.names.is_empty() { vec![image.image_ref().to_owned()] } else { image.names };
                say(names.join("\n"))?;
            }
        }
        ImageCommand::Pull { name, data, registries, authfile } => {
            let config = registries::config(&registries)?;
            let users = registries::logins(authfile.as_deref())?;
            let reference = images::normalize(&name).doing(|| format!("read the image name {name:?}"))?;
            let shown = Shown::new();
            let images = open(&data, config)?;
            let pulled = images.pull(&reference, &users, Arc::new(shown.clone())).await;
            shown.clear();
            let pulled = pulled?;
            images.give_to_everybody(&name)?;
            say(pulled.image_ref())?;
        }
        ImageCommand::List { data } => list(&open(&data, RegistryConfig::default())?)?,
        ImageCommand::Rm { name, data } => {
            if !open(&data, RegistryConfig::default())?.remove(&name)? {
                return said(format!("no image {name:?} here; `holdfast image list` shows what there is"));
            }
            say(format_args!("{name} removed"))?;
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
    align(&lines).iter().try_for_each(say)
}
