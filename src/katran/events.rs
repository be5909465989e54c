//! Monitors of packet events.

use std::path::Path;

use super::Katran;
use crate::error::Error;
use crate::error::Result;
use crate::monitor::Event;
use crate::monitor::Monitor;
use crate::monitor::MonitorOptions;
use crate::monitor::Start;
use crate::monitor::Turn;

/// Listens to events: [`Katran::events`].
///
/// Monitors of packets need [`Features::INTROSPECTION`](crate::Features::INTROSPECTION), and there
/// can be one at a time. Watching attachments needs no feature.
///
/// ```no_run
/// use katran::events::MonitorOptions;
///
/// # fn example(katran: &katran::Katran) -> katran::Result<()> {
/// let monitor = katran.events().to_list(MonitorOptions::new(), 100)?;
/// // ... and after a while:
/// for event in monitor.take() {
///     println!("{}: {} bytes", event.kind, event.length);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "a view does nothing by itself"]
pub struct Events<'a> {
    pub(super) katran: &'a Katran,
}

/// # Packets
impl Events<'_> {
    /// Calls `callback` with each event, on a thread of the library, until you stop or drop the
    /// monitor. Needs [`Features::INTROSPECTION`](crate::Features::INTROSPECTION).
    ///
    /// A callback that panics is not called again: the library switches the events off, and
    /// [`MonitorStats::failure`](crate::events::MonitorStats::failure) reports it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without the feature; [`Error::AlreadyExists`] while there is another
    /// monitor; [`Error::InvalidConfig`] for options out of range; [`Error::Kernel`] if the library
    /// cannot read the ring buffer or start a thread. Nothing has begun then.
    ///
    /// ```no_run
    /// use katran::Features;
    /// use katran::Katran;
    /// use katran::events::MonitorOptions;
    ///
    /// let katran = Katran::builder()
    ///     .gateway_mac("0a:00:00:00:00:fe".parse()?)
    ///     .features(Features::default() | Features::INTROSPECTION)
    ///     .load()?;
    /// let monitor = katran.events().start(MonitorOptions::new(), |event| {
    ///     println!("{}: {} bytes", event.kind, event.length);
    /// })?;
    /// // ...
    /// println!("{:?}", monitor.stop());
    /// # Ok::<(), katran::Error>(())
    /// ```
    #[doc(alias = "startKatranMonitor")]
    pub fn start(
        &self,
        options: MonitorOptions,
        callback: impl FnMut(&Event) + Send + 'static,
    ) -> Result<Monitor> {
        self.monitor(options)?.callback(Box::new(callback))
    }

    /// Writes events to pcap files in a directory, one for each kind: `tcp_non_syn_miss.pcap`,
    /// `packet_too_big.pcap` and `quic_real_gone.pcap`. An event that cannot be written, for
    /// example because the disk is full, is left out as a whole and counted, so the file stays
    /// readable.
    ///
    /// # Errors
    /// As [`start`](Self::start), and [`Error::File`] if a file exists or cannot be made. No new
    /// file is left then.
    pub fn to_pcap(&self, options: MonitorOptions, directory: impl AsRef<Path>) -> Result<Monitor> {
        self.monitor(options)?.files(directory.as_ref())
    }

    /// Keeps the last `capacity` events for [`Monitor::take`].
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn to_list(&self, options: MonitorOptions, capacity: usize) -> Result<Monitor> {
        self.monitor(options)?.list(capacity)
    }

    /// Whether there is a monitor.
    pub fn is_running(&self) -> bool {
        Turn::is_taken(&self.katran.monitored)
    }

    fn monitor(&self, options: MonitorOptions) -> Result<Start<'_>> {
        let events = self.katran.maps.features.events.as_ref();
        let events = events.ok_or_else(|| Error::Unsupported {
            what: "a monitor".to_owned(),
            reason: "the balancer was loaded without the feature introspection: switch it on",
        })?;
        let turn = Turn::take(&self.katran.monitored).ok_or_else(|| Error::AlreadyExists {
            what: "a monitor of this balancer".to_owned(),
        })?;
        Ok(Start {
            options,
            switch: &self.katran.events_switch,
            events,
            turn,
        })
    }
}

/// # Events
impl Katran {
    /// Events of packets and attachments.
    pub fn events(&self) -> Events<'_> {
        Events { katran: self }
    }
}
