//! One scrape: a snapshot of all counters as text for Prometheus. The library names and explains
//! its own counters (`Counters::metrics`); here is what it does not count: weights and health of
//! reals, attachments, memory, the version.

use std::fmt;
use std::sync::Arc;

use anyhow::Result;
use katran::Vip;
use katran::attachments::Attachment;
use katran::attachments::AttachmentState;
use katran::attachments::SharedEntry;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

use super::exposition::Format;
use super::exposition::Page;
use super::exposition::plain;
use crate::run::OfReal;
use crate::run::OfVip;
use crate::run::Snapshot;

/// The crate's version, a metric too.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The data of one scrape.
#[derive(Debug)]
pub(super) struct Scrape(pub(super) Arc<Snapshot>);

impl Scrape {
    pub(super) fn text(self, format: Format) -> Result<String> {
        // One registry for each scrape: a failed snapshot is then an error, not half a page.
        let mut registry = Registry::with_prefix("katran");
        registry.register_collector(Box::new(self));
        let mut page = String::new();
        text::encode(&mut page, &registry)?;
        Ok(match format {
            Format::OpenMetrics => page,
            Format::Plain => plain(&page),
        })
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let page = &mut Page::new(encoder);
        let of = &*self.0;
        for metric in of.counters.metrics().iter().chain(&of.checks) {
            page.metric(metric)?;
        }
        reals(page, &of.vips)?;
        let problems = of.problems.iter().flat_map(|(interface, counts)| {
            counts.iter().map(move |((subject, severity), count)| {
                let labels = vec![
                    ("interface", interface.clone()),
                    ("subject", subject.to_string()),
                    ("severity", severity.to_string().to_lowercase()),
                ];
                (labels, *count)
            })
        });
        page.gauge(
            "problem",
            "Warnings and problems of the diagnosis about a subject, and of health checks; `katran status` has the texts.",
            problems,
        )?;
        process(page, of)?;
        host(page, &of.attachments, &of.shared, of.memory)
    }
}

fn reals(page: &mut Page<'_>, vips: &[OfVip]) -> fmt::Result {
    let labels = |vip: &Vip, of: &OfReal| {
        vec![
            ("vip", vip.to_string()),
            ("real", of.real.address().to_string()),
        ]
    };
    let weights = vips.iter().flat_map(|of_vip| {
        let weight = move |of: &OfReal| (labels(&of_vip.vip, of), of.real.get_weight().into());
        of_vip.reals.iter().map(weight)
    });
    page.gauge(
        "vip_real_weight",
        "The real's weight at the VIP; 0: drained. A real that is down keeps its weight.",
        weights,
    )?;
    let down = vips.iter().flat_map(|of_vip| {
        let down = move |of: &OfReal| (labels(&of_vip.vip, of), of.down.into());
        of_vip.reals.iter().map(down)
    });
    page.gauge(
        "vip_real_down",
        "1: the real is down for the VIP and takes no flows, whatever its weight.",
        down,
    )
}

/// Documents, and since when this process has owned the balancer.
fn process(page: &mut Page<'_>, of: &Snapshot) -> fmt::Result {
    let past = &of.past;
    // The last attempt.
    let last = of.refused.as_ref().or(of.last_apply.as_ref());
    page.gauge(
        "apply_success",
        "1: the last document was applied; 0: it was refused, and the previous one stays current.",
        [(vec![], of.refused.is_none().into())],
    )?;
    page.seconds(
        "apply_time_seconds",
        "When the last document was applied or refused, in seconds since 1970.",
        last.map(|last| (vec![], last.time)),
    )?;
    page.seconds(
        "apply_duration_seconds",
        "How long that took, without reading the file.",
        last.map(|last| (vec![], last.took)),
    )?;
    page.seconds(
        "apply_success_time_seconds",
        "When a document was last applied, in seconds since 1970.",
        of.last_apply.as_ref().map(|last| (vec![], last.time)),
    )?;
    let outcome = |result: &str, count| (vec![("outcome", result.to_owned())], count);
    page.counter(
        "applies",
        "Documents and drains by command, by outcome.",
        [
            outcome("applied", past.applied),
            outcome("refused", past.refused),
        ],
    )?;
    page.gauge(
        "document_info",
        "The source of the current document: the file, or command.",
        [(vec![("source", past.source.clone())], 1)],
    )?;
    page.seconds(
        "owned_time_seconds",
        "When this process became the balancer's owner, in seconds since 1970.",
        [(vec![], past.owned)],
    )?;
    page.seconds(
        "loaded_time_seconds",
        "When the balancer was loaded, by any process, in seconds since 1970.",
        [(vec![], past.loaded)],
    )?;
    page.seconds(
        "figures_age_seconds",
        "The age of these figures, which grows while the balancer is busy with a change.",
        [(vec![], of.age())],
    )?;
    let silent = past.silent().map(|(hop, seconds)| {
        let labels = vec![("real", hop.real.clone()), ("address", hop.address.clone())];
        (labels, seconds)
    });
    page.seconds(
        "next_hop_silent_seconds",
        "How long this process has seen no answer from the next hop of a real, or of a family's reals; at most 100 series.",
        silent,
    )
}

fn labels_of(entry: &SharedEntry) -> Vec<(&'static str, String)> {
    vec![
        ("path", entry.path.display().to_string()),
        ("position", entry.position.to_string()),
    ]
}

/// Gauges of the host that explain the counters.
fn host(
    page: &mut Page<'_>,
    attachments: &[Attachment],
    shared: &[SharedEntry],
    memory: u64,
) -> fmt::Result {
    page.gauge(
        "maps_memory_bytes",
        "Kernel memory of the maps, as the kernel accounts it.",
        [(vec![], memory)],
    )?;
    let there = |state: AttachmentState| state == AttachmentState::Attached;
    let series = attachments.iter().map(|of| {
        let labels = vec![("interface", of.interface.clone())];
        (labels, there(of.state).into())
    });
    page.gauge(
        "attached",
        "1: the kernel reports the balancer's program on the interface; 0: it is gone or replaced.",
        series,
    )?;
    let attached = attachments.iter().filter(|of| there(of.state));
    let series = attached.map(|attachment| {
        let labels = vec![
            ("interface", attachment.interface.clone()),
            ("mode", attachment.mode.to_string()),
        ];
        (labels, 1)
    });
    page.gauge(
        "interface_info",
        "An interface of the balancer, and its XDP mode.",
        series,
    )?;
    let series = shared
        .iter()
        .map(|entry| (labels_of(entry), there(entry.state).into()));
    page.gauge(
        "shared_entry_attached",
        "1: the root entry has the balancer's program; 0: it is gone, or another balancer has the entry.",
        series,
    )?;
    let entries = shared.iter().filter(|of| there(of.state));
    let series = entries.map(|entry| (labels_of(entry), 1));
    page.gauge("shared_entry_info", "A root entry of the balancer.", series)?;
    page.gauge(
        "build_info",
        "The version of the crate.",
        [(vec![("version", VERSION.to_owned())], 1)],
    )
}
