//! Probes, lifecycle hooks and the ports they name.
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::check::{is_empty, items, text};
use crate::field::{Errors, Path};
use crate::names;

const TWO_HANDLERS: &str = "may not specify more than 1 handler type";

/// The actions of a probe or a hook, of which there must be one.
#[derive(Default)]
struct Handler<'a> {
    exec: Option<&'a core::ExecAction>,
    http: Option<&'a core::HTTPGetAction>,
    tcp: Option<&'a core::TCPSocketAction>,
    grpc: Option<&'a core::GRPCAction>,
    sleep: Option<&'a core::SleepAction>,
}

pub(crate) fn port(at: &Path<'_>, port: &IntOrString, e: &mut Errors) {
    match port {
        IntOrString::Int(number) => e.invalid_all(at, number, names::port_number((*number).into())),
        IntOrString::String(name) => e.invalid_all(at, name, names::port_name(name)),
    }
}

fn http(at: &Path<'_>, action: &core::HTTPGetAction, e: &mut Errors) {
    e.need(&at.field("path"), text(&action.path));
    port(&at.field("port"), &action.port, e);
    e.one_of(&at.field("scheme"), text(&action.scheme), &["HTTP", "HTTPS"]);
    for header in items(&action.http_headers) {
        e.invalid_all(&at.field("httpHeaders"), &header.name, names::http_header(&header.name));
    }
}

fn handler(at: &Path<'_>, h: &Handler<'_>, grace: Option<i64>, e: &mut Errors) {
    let mut count = 0;
    let mut first = |name: &str, e: &mut Errors| {
        count += 1;
        if count > 1 {
            e.forbidden(&at.field(name), TWO_HANDLERS);
        }
        count == 1
    };
    if let Some(exec) = h.exec
        && first("exec", e)
        && is_empty(&exec.command)
    {
        let at = at.field("exec");
        e.required(&at.field("command"), "");
    }
    if let Some(action) = h.http
        && first("httpGet", e)
    {
        http(&at.field("httpGet"), action, e);
    }
    if let Some(tcp) = h.tcp
        && first("tcpSocket", e)
    {
        let at = at.field("tcpSocket");
        port(&at.field("port"), &tcp.port, e);
    }
    if let Some(grpc) = h.grpc
        && first("grpc", e)
    {
        let at = at.field("grpc");
        port(&at.field("port"), &IntOrString::Int(grpc.port), e);
    }
    if let Some(sleep) = h.sleep
        && first("sleep", e)
        && let Some(grace) = grace
        && !(0..=grace).contains(&sleep.seconds)
    {
        let detail = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        e.invalid(&at.field("sleep"), &sleep.seconds, &detail);
    }
    if count == 0 {
        e.required(at, "must specify a handler type");
    }
}

fn probe(at: &Path<'_>, probe: &core::Probe, e: &mut Errors) {
    let h = Handler {
        exec: probe.exec.as_ref(),
        http: probe.http_get.as_ref(),
        tcp: probe.tcp_socket.as_ref(),
        grpc: probe.grpc.as_ref(),
        sleep: None,
    };
    handler(at, &h, None, e);
    for (field, value) in [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        e.not_negative(&at.field(field), value.unwrap_or(0).into());
    }
    if let Some(seconds) = probe.termination_grace_period_seconds.filter(|s| *s <= 0) {
        e.invalid(&at.field("terminationGracePeriodSeconds"), &seconds, "must be greater than 0");
    }
}

/// The three probes of a container.
pub(crate) fn probes(at: &Path<'_>, c: &core::Container, e: &mut Errors) {
    for (name, p) in [
        ("livenessProbe", &c.liveness_probe),
        ("readinessProbe", &c.readiness_probe),
        ("startupProbe", &c.startup_probe),
    ] {
        let (at, Some(p)) = (at.field(name), p) else { continue };
        probe(&at, p, e);
        if name == "readinessProbe" {
            if let Some(seconds) = p.termination_grace_period_seconds {
                e.invalid(&at.field("terminationGracePeriodSeconds"), &seconds, "must not be set for readinessProbes");
            }
        } else if p.success_threshold != Some(1) {
            e.invalid(&at.field("successThreshold"), &p.success_threshold.unwrap_or(0), "must be 1");
        }
    }
}

pub(crate) fn lifecycle(at: &Path<'_>, l: &core::Lifecycle, spec: &core::PodSpec, e: &mut Errors) {
    for (name, hook) in [("postStart", &l.post_start), ("preStop", &l.pre_stop)] {
        if let Some(hook) = hook {
            let h = Handler {
                exec: hook.exec.as_ref(),
                http: hook.http_get.as_ref(),
                tcp: hook.tcp_socket.as_ref(),
                grpc: None,
                sleep: hook.sleep.as_ref(),
            };
            handler(&at.field(name), &h, spec.termination_grace_period_seconds, e);
        }
    }
    if l.stop_signal.is_some() && spec.os.is_none() {
        e.forbidden(&at.field("stopSignal"), "may not be set for containers with empty `spec.os.name`");
    }
}
