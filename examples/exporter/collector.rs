//! One scrape: a snapshot of everything that the balancer counts, and its text for Prometheus. The
//! library says what its counters are called and mean (`Counters::metrics`); here is what they do not
//! tell: weights and health of reals, attachments, memory, the version.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use anyhow::Result;
use katran::Katran;
use katran::Real;
use katran::Vip;
use katran::attachments::Attachment;
use katran::attachments::AttachmentState;
use katran::attachments::SharedEntry;
use katran::diagnosis::Severity;
use katran::diagnosis::Subject;
use katran::flows::FlowCount;
use katran::stats::Counters;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

use crate::page::Format;
use crate::page::Page;
use crate::page::plain;

/// The crate's version goes out with the metrics.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// All that one request is told.
#[derive(Debug)]
pub(crate) struct Scrape {
    counters: Counters,
    reals: Vec<OfVip>,
    attachments: Vec<Attachment>,
    /// Root programs' arrays, and positions in them.
    shared: Vec<SharedEntry>,
    /// How much is bad, by interface.
    problems: Vec<OfInterface>,
    /// Bytes that the kernel accounts to the maps.
    memory: u64,
}

/// A VIP's reals with their weights, and those of them that are down.
type OfVip = (Vip, Vec<Real>, Vec<IpAddr>);

/// An interface, and how many findings there are on it.
type OfInterface = (String, BTreeMap<(Subject, Severity), u64>);

impl Scrape {
    /// What is true now, but for entries of the flow tables, which have been counted before.
    pub(crate) fn take(katran: &Katran, flows: &FlowCount) -> Result<Self> {
        let mut reals = Vec::new();
        for vip in katran.vips() {
            reals.push((vip, katran.reals(vip)?, katran.down_reals(vip)?));
        }
        let mut counters = katran.counters_with(flows)?;
        // The mean of the others is what balance is measured by: CPUs that are not meant to forward, and
        // do not, have no part in it.
        let forwarding = katran.forwarding_cpus();
        counters
            .cpus
            .retain(|cpu| cpu.forwarded > 0 || forwarding.contains(&cpu.cpu));
        Ok(Self {
            counters,
            reals,
            problems: problems(katran)?,
            attachments: katran.interfaces(),
            shared: katran.shared_entries(),
            memory: katran.stats().memory_in_use()?,
        })
    }

    pub(crate) fn text(self, format: Format) -> Result<String> {
        // One for each scrape: a snapshot that fails is then an answer of its own, not half a page.
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
        for metric in self.counters.metrics() {
            page.metric(&metric)?;
        }
        reals(page, &self.reals)?;
        let problems = self.problems.iter().flat_map(|(interface, counts)| {
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
            "Warnings and problems that the diagnosis finds about a subject; it has the words.",
            problems,
        )?;
        host(page, &self.attachments, &self.shared, self.memory)
    }
}

/// What the diagnosis finds on each interface, gone or not.
fn problems(katran: &Katran) -> Result<Vec<OfInterface>> {
    let names: BTreeSet<_> = katran
        .interfaces()
        .into_iter()
        .map(|of| of.interface)
        .collect();
    let counted = names.into_iter().map(|name| {
        let counts = katran.diagnose(&name)?.counts();
        Ok((name, counts))
    });
    counted.collect()
}

fn reals(page: &mut Page<'_>, vips: &[OfVip]) -> fmt::Result {
    let labels = |vip: &Vip, real: &Real| {
        vec![
            ("vip", vip.to_string()),
            ("real", real.address().to_string()),
        ]
    };
    let weights = vips.iter().flat_map(|(vip, reals, _)| {
        let weight = move |real: &Real| (labels(vip, real), real.get_weight().into());
        reals.iter().map(weight)
    });
    page.gauge(
        "vip_real_weight",
        "The real's weight at the VIP; 0: it is drained, and takes no new flows. One that is down keeps its weight.",
        weights,
    )?;
    let down = vips.iter().flat_map(|(vip, reals, down)| {
        // In the order of their addresses.
        let is_down = |real: &Real| down.binary_search(&real.address()).is_ok();
        reals
            .iter()
            .map(move |real| (labels(vip, real), is_down(real).into()))
    });
    page.gauge(
        "vip_real_down",
        "1: the real is down for the VIP, and takes no flows whatever its weight.",
        down,
    )
}

/// What is no counter of the balancer's, but explains them.
fn host(
    page: &mut Page<'_>,
    attachments: &[Attachment],
    shared: &[SharedEntry],
    memory: u64,
) -> fmt::Result {
    page.gauge(
        "maps_memory_bytes",
        "Kernel memory that the maps take, as the kernel accounts it.",
        [(vec![], memory)],
    )?;
    let there = |state: AttachmentState| state == AttachmentState::Attached;
    let series = attachments.iter().map(|of| {
        let labels = vec![("interface", of.interface.clone())];
        (labels, there(of.state).into())
    });
    page.gauge(
        "attached",
        "1: the interface has the balancer's program, by the kernel's word; 0: it is gone, or another one is in its place.",
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
        "An interface on which packets are balanced, and the XDP mode in force.",
        series,
    )?;
    let entries = shared.iter().filter(|of| there(of.state));
    let series = entries.map(|entry| {
        let labels = vec![
            ("path", entry.path.display().to_string()),
            ("position", entry.position.to_string()),
        ];
        (labels, 1)
    });
    page.gauge(
        "shared_entry_info",
        "An entry of a root program by which packets are balanced.",
        series,
    )?;
    page.gauge(
        "build_info",
        "The version of the crate.",
        [(vec![("version", VERSION.to_owned())], 1)],
    )
}
