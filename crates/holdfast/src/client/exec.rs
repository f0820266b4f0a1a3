//! `holdfast exec`: a command in a container, with the local terminal if asked.
use std::process::ExitCode;

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{AttachParams, AttachedProcess, TerminalSize},
};
use tokio::io::{AsyncRead, AsyncWriteExt};

use super::{Error, Session};
use crate::{Outcome, cli::ExecArgs, errors::said};

pub async fn run(args: ExecArgs) -> Outcome {
    let session = Session::open(&args.server).await?;
    let pods: Api<Pod> = Api::namespaced(session.client.clone(), &session.namespace);
    let mut params = AttachParams::default().stdin(args.stdin).tty(args.tty).stderr(!args.tty);
    if let Some(container) = args.container {
        params = params.container(container);
    }
    let terminal = if args.tty && args.stdin { Terminal::raw()? } else { None };
    let process = pods.exec(&args.pod, args.command, &params).await?;
    let code = converse(process).await;
    drop(terminal);
    code
}

async fn converse(mut process: AttachedProcess) -> Outcome {
    let out = process.stdout().map(|from| tokio::spawn(copy(from, tokio::io::stdout())));
    let err = process.stderr().map(|from| tokio::spawn(copy(from, tokio::io::stderr())));
    if let Some(mut stdin) = process.stdin() {
        // Reading the terminal blocks a thread of its own: it must not keep the program from ending.
        tokio::spawn(async move {
            let _ = tokio::io::copy(&mut tokio::io::stdin(), &mut stdin).await;
            let _ = stdin.shutdown().await;
        });
    }
    if let Some(mut sizes) = process.terminal_size() {
        tokio::spawn(async move { follow_size(&mut sizes).await });
    }
    let status = process.take_status();
    for task in [out, err].into_iter().flatten() {
        let _ = task.await;
    }
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    let Some(status) = status else { return said("the server closed the session without an exit status") };
    if status.status.as_deref() == Some("Success") {
        return Ok(ExitCode::SUCCESS);
    }
    let causes = status.details.as_ref().and_then(|d| d.causes.as_ref()).into_iter().flatten();
    let code =
        causes.filter(|c| c.reason.as_deref() == Some("ExitCode")).find_map(|c| c.message.as_ref()?.parse::<u8>().ok());
    match code {
        Some(code) => Ok(ExitCode::from(code)),
        None => said(status.message.unwrap_or_else(|| "the command could not be run".into())),
    }
}

async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWriteExt + Unpin) -> std::io::Result<()> {
    tokio::io::copy(&mut from, &mut to).await?;
    to.flush().await
}

async fn follow_size(sizes: &mut futures::channel::mpsc::Sender<TerminalSize>) {
    use futures::SinkExt;
    let changed = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::window_change());
    let Ok(mut changed) = changed else { return };
    loop {
        if let Ok(size) = rustix::termios::tcgetwinsize(std::io::stdin()) {
            let size = TerminalSize { width: size.ws_col, height: size.ws_row };
            if sizes.send(size).await.is_err() {
                return;
            }
        }
        changed.recv().await;
    }
}

/// Puts the terminal into raw mode until dropped.
struct Terminal(rustix::termios::Termios);

impl Terminal {
    fn raw() -> Result<Option<Self>, Error> {
        use rustix::termios::{OptionalActions, isatty, tcgetattr, tcsetattr};
        if !isatty(std::io::stdin()) {
            return Ok(None);
        }
        let before = tcgetattr(std::io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Some(Self(before)))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = rustix::termios::tcsetattr(std::io::stdin(), rustix::termios::OptionalActions::Now, &self.0);
    }
}
