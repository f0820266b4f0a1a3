//! `holdfast logs`.
use std::process::ExitCode;

use futures::{AsyncReadExt, io::AsyncRead};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::LogParams};
use tokio::io::AsyncWriteExt;

use super::{Error, Session};
use crate::{Outcome, cli::LogsArgs, errors::unread};

pub async fn run(args: LogsArgs) -> Outcome {
    let session = Session::open(&args.server).await?;
    let pods: Api<Pod> = Api::namespaced(session.client.clone(), &session.namespace);
    let params = LogParams {
        container: args.container,
        follow: args.follow,
        previous: args.previous,
        tail_lines: args.tail,
        timestamps: args.timestamps,
        ..LogParams::default()
    };
    let stream = pods.log_stream(&args.pod, &params).await?;
    copy(Box::pin(stream)).await?;
    Ok(ExitCode::SUCCESS)
}

async fn copy(mut from: impl AsyncRead + Unpin) -> Result<(), Error> {
    let mut out = tokio::io::stdout();
    let mut buffer = vec![0; 16 << 10];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return out.flush().await.map_err(unread);
        }
        out.write_all(&buffer[..count]).await.map_err(unread)?;
        out.flush().await.map_err(unread)?;
    }
}
