//! `wirevip status`: what every tunnel does now, seen from outside.
//!
//! `read` asks the cluster, `picture` makes sense of the answers, `table` writes them down; only the first touches the
//! world. What must hold: what could not be read is said, with the reason; odd data is shown as far as it goes, and
//! never ends the command.

mod picture;
mod read;
mod services;
mod table;

use std::io::Write;

use anyhow::Context;
use jiff::Timestamp;

use self::picture::Picture;
use super::Outcome;
use crate::api::client::{Credentials, connect};
use crate::metrics::Metrics;
use crate::secret::is_subdomain;

/// Where the chart and the manifests put wirevip.
const USUAL_NAMESPACE: &str = "wirevip";

/// Show what every tunnel does now
///
/// Reads, with your own kubeconfig, the Leases, the Services, and what every pod says of itself (through the API
/// server's pod proxy), and says what it could not read and why. Needs `list` on pods, leases and services and `get`
/// on pods/proxy. Exits with 1 if Leases or pods could not be read, or no pod answered.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Namespace of the pods and Leases [default: that of the kubeconfig's context unless `default`, else wirevip].
    #[arg(short, long, env = "POD_NAMESPACE")]
    namespace: Option<String>,
    /// Labels of the pods.
    #[arg(short = 'l', long, env = "WIREVIP_SELECTOR", default_value = "app.kubernetes.io/name=wirevip")]
    selector: String,
    /// Port of the pods' /status [default: the container port called `http`, else 9586].
    #[arg(
        long, env = "WIREVIP_HTTP_PORT", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..)
    )]
    http_port: Option<u16>,
    /// How to print it.
    #[arg(short, long, env = "WIREVIP_OUTPUT", default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Output {
    /// Tables.
    Text,
    /// Everything, the pods' reports as they came.
    Json,
}

/// Checked arguments.
#[derive(Debug)]
pub(super) struct Plan {
    namespace: Option<String>,
    selector: String,
    http_port: Option<u16>,
    output: Output,
}

impl Plan {
    /// Everything that is wrong with the arguments at once, or what they say.
    pub(super) fn check(args: Args) -> Result<Self, Vec<String>> {
        let Args { namespace, selector, http_port, output } = args;
        let mut wrong = Vec::new();
        // Empty is what an unset value leaves in the environment.
        let namespace = namespace.filter(|name| !name.is_empty());
        if let Some(name) = namespace.as_ref().filter(|name| !is_subdomain(name)) {
            wrong.push(format!("--namespace: `{name}` is no name of a namespace"));
        }
        if selector.trim().is_empty() {
            wrong.push("--selector is empty and would take every pod; leave it out for wirevip's".to_owned());
        }
        if wrong.is_empty() { Ok(Self { namespace, selector, http_port, output }) } else { Err(wrong) }
    }
}

pub(super) fn run(plan: &Plan, out: &mut impl Write) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let seen = runtime.block_on(async {
        let client = connect(Credentials::User, &Metrics::new()).await?.client;
        // kube says `default` also where the context says nothing; nobody would install wirevip there unasked.
        let context = Some(client.default_namespace()).filter(|name| *name != "default");
        let namespace = plan.namespace.as_deref().or(context).unwrap_or(USUAL_NAMESPACE).to_owned();
        anyhow::Ok(read::everything(&client, namespace, &plan.selector, plan.http_port).await)
    })?;
    if let Some(why) = seen.nothing() {
        return Err(anyhow::anyhow!(why.to_owned())).context("nothing could be read from the cluster");
    }
    let complete = seen.suffices();
    let picture = Picture::of(seen, Timestamp::now());
    match plan.output {
        Output::Text => out.write_all(table::text(&picture).as_bytes())?,
        Output::Json => {
            serde_json::to_writer_pretty(&mut *out, &picture)?;
            writeln!(out)?;
        }
    }
    Ok(if complete { Outcome::Done } else { Outcome::Partial })
}

#[cfg(test)]
mod tests;
