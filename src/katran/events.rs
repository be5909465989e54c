//! Listening to events.

use std::path::Path;
use std::sync::Arc;

use super::Katran;
use crate::error::Error;
use crate::error::Result;
use crate::monitor::Event;
use crate::monitor::Monitor;
use crate::monitor::MonitorOptions;
use crate::monitor::Start;

impl Katran {
    /// Calls `callback` with each event, on a thread of the library's own, until the monitor is
    /// stopped or dropped. Needs [`Features::INTROSPECTION`](crate::Features::INTROSPECTION).
    ///
    /// If the callback panics it is not called again, the program is told to make no more events, and
    /// [`MonitorStats::failure`](crate::events::MonitorStats::failure) says so.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without the feature; [`Error::AlreadyExists`] while there is another
    /// monitor; [`Error::InvalidConfig`] for options out of their ranges; [`Error::Kernel`] if the
    /// ring buffer cannot be read or there is no thread for it. Nothing has begun then.
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
    /// let monitor = katran.monitor(MonitorOptions::new(), |event| {
    ///     println!("{}: {} bytes", event.kind, event.length);
    /// })?;
    /// // ...
    /// println!("{:?}", monitor.stop());
    /// # Ok::<(), katran::Error>(())
    /// ```
    #[doc(alias = "startKatranMonitor")]
    pub fn monitor(
        &self,
        options: MonitorOptions,
        callback: impl FnMut(&Event) + Send + 'static,
    ) -> Result<Monitor> {
        self.start_monitor(options)?.callback(Box::new(callback))
    }

    /// Writes events to pcap files in a directory, one for each kind: `tcp_non_syn_miss.pcap`,
    /// `packet_too_big.pcap` and `quic_real_gone.pcap`. An event that cannot be written, as the disk is
    /// full, is left out and counted; the file stays one that can be read.
    ///
    /// # Errors
    /// As [`monitor`](Self::monitor), and [`Error::File`] if one of them cannot be made, or exists. No
    /// new file is left then.
    pub fn monitor_to_pcap(
        &self,
        options: MonitorOptions,
        directory: impl AsRef<Path>,
    ) -> Result<Monitor> {
        self.start_monitor(options)?.files(directory.as_ref())
    }

    /// Keeps the last `capacity` events for [`Monitor::take`].
    ///
    /// # Errors
    /// As [`monitor`](Self::monitor).
    pub fn monitor_to_list(&self, options: MonitorOptions, capacity: usize) -> Result<Monitor> {
        self.start_monitor(options)?.list(capacity)
    }

    /// Whether a monitor listens.
    pub fn is_monitored(&self) -> bool {
        Arc::strong_count(&self.monitor_token) > 1
    }

    fn start_monitor(&self, options: MonitorOptions) -> Result<Start<'_>> {
        let events = self.maps.features.events.as_ref();
        let events = events.ok_or_else(|| Error::Unsupported {
            what: "a monitor".to_owned(),
            reason: "the balancer was loaded without the feature introspection: switch it on",
        })?;
        let token = Arc::clone(&self.monitor_token);
        // The balancer's, this one, and that of another's thread.
        if Arc::strong_count(&token) > 2 {
            return Err(Error::AlreadyExists {
                what: "a monitor of this balancer".to_owned(),
            });
        }
        Ok(Start {
            options,
            live: &self.maps.live,
            events,
            token,
        })
    }
}
