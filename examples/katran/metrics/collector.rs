//! One scrape: a snapshot of everything that the balancer counts, and its text for Prometheus. The
//! library says what its counters are called and mean (`Counters::metrics`); here is what they do
//! not tell: weights and health of reals, attachments, memory, the version.

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

/// The crate's version goes out with the metrics.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What one request gets.
#[derive(Debug)]
pub(super) struct Scrape(pub(super) Arc<Snapshot>);

impl Scrape {
    pub(super) fn text(self, format: Format) -> Result<String> {
        // One for each scrape: a snapshot that fails is then a separate answer, not half a page.
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
            "Findings of the diagnosis and of probes; `katran status` shows their text.",
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
        "The real's weight at the VIP, kept while it is down; 0: drained.",
        weights,
    )?;
    let down = vips.iter().flat_map(|of_vip| {
        let down = move |of: &OfReal| (labels(&of_vip.vip, of), of.down.into());
        of_vip.reals.iter().map(down)
    });
    page.gauge(
        "vip_real_down",
        "1: the real is down for the VIP and gets no flows, whatever its weight.",
        down,
    )
}

/// The documents applied and refused, and since when this process has owned the balancer.
fn process(page: &mut Page<'_>, of: &Snapshot) -> fmt::Result {
    let past = &of.past;
    // The last one that was tried.
    let last = of.refused.as_ref().or(of.last_apply.as_ref());
    page.gauge(
        "apply_success",
        "1: the last document was applied; 0: it was refused, and the earlier one stays current.",
        [(vec![], of.refused.is_none().into())],
    )?;
    page.seconds(
        "apply_time_seconds",
        "Unix time when the last document was applied or refused.",
        last.map(|last| (vec![], last.time)),
    )?;
    page.seconds(
        "apply_duration_seconds",
        "How long the last document took to apply, without reading the file.",
        last.map(|last| (vec![], last.took)),
    )?;
    page.seconds(
        "apply_success_time_seconds",
        "Unix time when a document was last applied.",
        of.last_apply.as_ref().map(|last| (vec![], last.time)),
    )?;
    let outcome = |result: &str, count| (vec![("outcome", result.to_owned())], count);
    page.counter(
        "applies",
        "Documents, and drains by command, that this process tried to apply, by outcome.",
        [
            outcome("applied", past.applied),
            outcome("refused", past.refused),
        ],
    )?;
    page.gauge(
        "document_info",
        "Source of the current document: a file, or `command`.",
        [(vec![("source", past.source.clone())], 1)],
    )?;
    page.seconds(
        "owned_time_seconds",
        "Unix time when this process became the owner.",
        [(vec![], past.owned)],
    )?;
    page.seconds(
        "loaded_time_seconds",
        "Unix time when the balancer was loaded, by any process.",
        [(vec![], past.loaded)],
    )?;
    page.seconds(
        "figures_age_seconds",
        "Age of all figures, which grows while the balancer is busy with a change.",
        [(vec![], of.age())],
    )?;
    let silent = past.silent().map(|(hop, seconds)| {
        let labels = vec![("real", hop.real.clone()), ("address", hop.address.clone())];
        (labels, seconds)
    });
    page.seconds(
        "next_hop_silent_seconds",
        "How long the next hop of a real, or of a family's reals, has not answered; 100 series at most.",
        silent,
    )
}

fn labels_of(entry: &SharedEntry) -> Vec<(&'static str, String)> {
    vec![
        ("path", entry.path.display().to_string()),
        ("position", entry.position.to_string()),
    ]
}

/// Not the balancer's own counters, but what explains them.
fn host(
    page: &mut Page<'_>,
    attachments: &[Attachment],
    shared: &[SharedEntry],
    memory: u64,
) -> fmt::Result {
    page.gauge(
        "maps_memory_bytes",
        "Memory of the maps, as the kernel accounts for it.",
        [(vec![], memory)],
    )?;
    let there = |state: AttachmentState| state == AttachmentState::Attached;
    let series = attachments.iter().map(|of| {
        let labels = vec![("interface", of.interface.clone())];
        (labels, there(of.state).into())
    });
    page.gauge(
        "attached",
        "1: the interface has the balancer's program; 0: the program is gone or replaced.",
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
        "An interface that the balancer is attached to, and its XDP mode.",
        series,
    )?;
    let series = shared
        .iter()
        .map(|entry| (labels_of(entry), there(entry.state).into()));
    page.gauge(
        "shared_entry_attached",
        "1: the root entry has the balancer's program; 0: the program is gone or replaced.",
        series,
    )?;
    let entries = shared.iter().filter(|of| there(of.state));
    let series = entries.map(|entry| (labels_of(entry), 1));
    page.gauge(
        "shared_entry_info",
        "A root entry with the balancer's program.",
        series,
    )?;
    page.gauge(
        "build_info",
        "The version of the crate.",
        [(vec![("version", VERSION.to_owned())], 1)],
    )
}
