//! The destination and the outer source of encapsulated packets.

use std::net::IpAddr;
use std::sync::Arc;

use super::Katran;
use super::change::Left;
use super::change::Prepared;
use super::remember::settings;
use crate::config::Config;
use crate::config::check_gateway;
use crate::config::check_gateway_mac;
use crate::config::check_source;
use crate::error::Result;
use crate::maps::HopCells;
use crate::maps::Moment;
use crate::maps::ProbeCells;
use crate::next_hop::NextHopList;
use crate::next_hop::Wanted;
use crate::next_hop::Watcher;
use crate::table::RealRecord;
use crate::types::Family;
use crate::types::Gateway;
use crate::types::MacAddr;
use crate::types::RealNumber;

/// The destination and the outer source of encapsulated packets: [`Katran::gateways`].
///
/// ```no_run
/// use katran::Family;
///
/// # fn example(katran: &katran::Katran) {
/// println!("IPv4 reals are behind {}", katran.gateways().mac(Family::V4));
/// for hop in &katran.gateways().next_hops() {
///     println!("{hop:?}");
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "a view does nothing by itself"]
pub struct Gateways<'a> {
    katran: &'a Katran,
}

/// # Gateways, next hops and sources
impl Gateways<'_> {
    /// The MAC address that encapsulated frames for a family's reals go to; all zero while the
    /// library has not discovered it.
    #[doc(alias = "getMac")]
    pub fn mac(&self, family: Family) -> MacAddr {
        let watcher = self.katran.following.watcher.as_ref();
        let found = watcher.and_then(|watcher| watcher.gateway(family));
        let fixed = self.katran.wanted().fixed(family);
        found.or(fixed).unwrap_or(MacAddr::new([0; 6]))
    }

    /// The configured gateway.
    pub fn setting(&self) -> Gateway {
        self.katran.config.gateway_mac
    }

    /// The next hops that the library discovers: with [`Gateway::Auto`] the two gateways, with
    /// [`NextHops::PerReal`](crate::NextHops::PerReal) and
    /// [`NextHops::Redirect`](crate::NextHops::Redirect) the next hop of each real. Empty before
    /// the first attachment, and where you configured the address.
    ///
    /// They are those of the first network namespace with an attachment, for frames from all
    /// attachments. Where routers differ, run one balancer for each namespace.
    ///
    /// The snapshot takes less than a microsecond for any number of reals, and never waits for the
    /// thread that discovers next hops.
    pub fn next_hops(&self) -> NextHopList {
        self.katran
            .following
            .watcher
            .as_ref()
            .map(Watcher::list)
            .unwrap_or_default()
    }

    /// The longest frame that is forwarded, in bytes: the setting
    /// [`max_frame`](crate::Builder::max_frame), or its current value if that is
    /// [`Auto`](crate::state::MaxFrame::Auto).
    pub fn max_frame(&self) -> u32 {
        self.katran.links.longest()
    }

    /// A family's outer source address, if set: GUE sends from it, and `STRICT_DESTINATION` takes
    /// it for this host's own.
    pub fn source(&self, family: Family) -> Option<IpAddr> {
        self.katran.source(family)
    }
}

/// Changes the destination and the outer source of encapsulated packets: [`Katran::gateways_mut`].
///
/// ```no_run
/// use katran::Gateway;
///
/// # fn example(katran: &mut katran::Katran) -> katran::Result<()> {
/// katran.gateways_mut().set_mac("0a:00:00:00:00:fe".parse()?)?;
/// katran.gateways_mut().set(Gateway::Auto)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a view does nothing by itself"]
pub struct GatewaysMut<'a> {
    pub(super) katran: &'a mut Katran,
}

/// # Gateways and sources
impl GatewaysMut<'_> {
    /// Sends encapsulated frames to another MAC address, for every family that has no separate
    /// address.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) if it is not a unicast address.
    #[doc(alias = "changeMac")]
    pub fn set_mac(&mut self, mac: MacAddr) -> Result<()> {
        self.set(Gateway::Mac(mac))
    }

    /// Sends encapsulated frames to another router, or makes the library discover one.
    ///
    /// The library looks in the network namespace of the first attachment, whatever namespace the
    /// calling thread is in. While it has nothing to discover it holds no reference to that
    /// namespace. A change from an address to [`Gateway::Auto`] by a thread in another namespace
    /// therefore searches `/proc`, which takes `CAP_SYS_ADMIN`. A balancer without attachments does
    /// not look yet.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig) if it is not a unicast address, or no
    /// process visible in `/proc` is in the namespace;
    /// [`Error::NoNextHop`](crate::Error::NoNextHop) if the gateway is not found within three
    /// seconds of examining all reals. Nothing has changed then.
    pub fn set(&mut self, gateway: Gateway) -> Result<()> {
        let _call = self.katran.call()?;
        check_gateway(gateway)?;
        let wanted = Wanted {
            gateway,
            ..self.katran.wanted()
        };
        self.katran.change_gateways(wanted)
    }

    /// Sends encapsulated frames for IPv6 reals to a separate MAC address; `None`: to that of
    /// [`set`](Self::set).
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn set_mac_v6(&mut self, mac: Option<MacAddr>) -> Result<()> {
        let _call = self.katran.call()?;
        mac.map_or(Ok(()), check_gateway_mac)?;
        let wanted = Wanted {
            gateway_v6: mac,
            ..self.katran.wanted()
        };
        self.katran.change_gateways(wanted)
    }

    /// Sets the outer source address of its family.
    ///
    /// GUE sends from it, and `STRICT_DESTINATION` takes it for this host's own. IP in IP makes up
    /// a source for each flow instead (see
    /// [`Builder::ipip_source_v4`](crate::Builder::ipip_source_v4)).
    ///
    /// A second call within some milliseconds waits until no packet uses the oldest of the three
    /// addresses.
    ///
    /// # Errors
    /// [`Error::InvalidAddress`](crate::Error::InvalidAddress) if no host can have it;
    /// [`Error::Kernel`](crate::Error::Kernel) if the kernel refuses to wait. Nothing has changed
    /// then.
    #[doc(alias = "addSrcIpForPcktEncap")]
    pub fn set_source(&mut self, address: IpAddr) -> Result<()> {
        let _call = self.katran.call()?;
        let address = address.to_canonical();
        self.katran.note(check_source(address))?;
        self.katran
            .change_source(Family::of(address), Some(address))
    }
}

/// # Next hops and outer sources
impl Katran {
    /// The destination and the outer source of encapsulated packets.
    pub fn gateways(&self) -> Gateways<'_> {
        Gateways { katran: self }
    }

    /// Changes the destination and the outer source of encapsulated packets.
    pub fn gateways_mut(&mut self) -> GatewaysMut<'_> {
        GatewaysMut { katran: self }
    }

    pub(super) fn change_source(&mut self, family: Family, address: Option<IpAddr>) -> Result<()> {
        if self.source(family) == address {
            return Ok(());
        }
        let passed = self.collect();
        // There are two copies, and packets may read the one before this.
        let config = with_source(&self.config, family, address);
        let written = Prepared::plain(settings(&config)).write(self, |katran| {
            match katran.sources_set > passed {
                true => katran.settle(),
                false => Ok(()),
            }
        })?;
        let switched = written.switch(self, |katran, ()| {
            let (v4, v6) = (config.source_v4, config.source_v6);
            katran.config.source_v4 = v4;
            katran.config.source_v6 = v6;
            katran.maps.live.set_own_addresses(v4, v6);
            if let Some(probes) = katran.probe_cells() {
                probes.set_own_addresses(v4, v6);
            }
            Left::Sources
        });
        switched.end(self);
        Ok(())
    }

    pub(super) fn source(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.config.source_v4.map(IpAddr::V4),
            Family::V6 => self.config.source_v6.map(IpAddr::V6),
        }
    }

    /// Sends packets to other gateways. The library discovers what it must before the switch;
    /// meanwhile packets go to the first gateway found.
    fn change_gateways(&mut self, wanted: Wanted) -> Result<()> {
        let config = Config {
            gateway_mac: wanted.gateway,
            gateway_mac_v6: wanted.gateway_v6,
            ..self.config.clone()
        };
        let written = Prepared::plain(settings(&config))
            .write_in_sight(self, |katran| katran.follow(wanted))?;
        let switched = written.switch(self, |katran, ()| {
            katran.write_gateways(wanted);
            katran.config.gateway_mac = wanted.gateway;
            katran.config.gateway_mac_v6 = wanted.gateway_v6;
            Left::Nothing
        });
        switched.end(self);
        Ok(())
    }

    pub(super) fn probe_cells(&self) -> Option<Arc<ProbeCells>> {
        let checks = self.healthchecks.as_ref();
        checks.map(|checks| Arc::clone(checks.cells()))
    }

    pub(super) fn wanted(&self) -> Wanted {
        Wanted {
            gateway: self.config.gateway_mac,
            gateway_v6: self.config.gateway_mac_v6,
            mode: self.config.next_hops,
        }
    }

    /// Writes the configured addresses.
    pub(super) fn write_gateways(&self, wanted: Wanted) {
        self.write_gateway_macs(wanted);
        if let (None, Some(hops)) = (&self.following.watcher, &self.maps.next_hops) {
            for (address, entry) in self.table.reals() {
                write_hop(hops, wanted, entry.number.0, address);
            }
        }
    }

    /// The same without the reals' next hops, for which packets may know better ones.
    pub(super) fn write_gateway_macs(&self, wanted: Wanted) {
        for family in Family::ALL {
            if let Some(mac) = wanted.fixed(family) {
                self.maps.live.set_gateway_mac(family, mac);
                if let Some(probes) = self.probe_cells() {
                    probes.set_gateway_mac(family, mac);
                }
            }
        }
    }

    /// Packets may go to these reals from now on.
    pub(super) fn reach(&self, added: &[RealRecord]) {
        let reals = added.iter().map(|record| (record.number.0, record.address));
        if let Some(watcher) = &self.following.watcher {
            watcher.add(reals);
        } else if let Some(hops) = &self.maps.next_hops {
            for (number, address) in reals {
                write_hop(hops, self.wanted(), number, address);
            }
        }
    }

    /// No new packets go to these; packets under way may.
    pub(super) fn forget(&mut self, numbers: impl Iterator<Item = u16>) {
        let numbers: Vec<_> = numbers.collect();
        if numbers.is_empty() {
            return;
        }
        if let Some(watcher) = &self.following.watcher {
            watcher.remove(numbers.iter().copied());
        }
        if self.maps.next_hops.is_some() {
            let moment = self.maps.rings.retire(None);
            self.left_hops.push_back((moment, numbers));
        }
    }

    /// Clears the hops of removed reals that no packet reads any more.
    pub(super) fn clear_left_hops(&mut self, passed: Moment) {
        let Some(hops) = &self.maps.next_hops else {
            return;
        };
        while let Some((moment, numbers)) = self.left_hops.front()
            && *moment <= passed
        {
            for number in numbers {
                // Another real may have the number, with its own hop.
                if self.table.address_of(RealNumber(*number)).is_none() {
                    hops.clear(*number);
                }
            }
            self.left_hops.pop_front();
        }
    }
}

/// The settings with another outer source of a family, or none.
fn with_source(config: &Config, family: Family, address: Option<IpAddr>) -> Config {
    let mut config = config.clone();
    match (family, address) {
        (_, Some(IpAddr::V4(v4))) => config.source_v4 = Some(v4),
        (_, Some(IpAddr::V6(v6))) => config.source_v6 = Some(v6),
        (Family::V4, None) => config.source_v4 = None,
        (Family::V6, None) => config.source_v6 = None,
    }
    config
}

/// Writes what is known of a real's next hop before discovery, which begins with attachment.
fn write_hop(hops: &HopCells, wanted: Wanted, number: u16, real: IpAddr) {
    match wanted.fixed(Family::of(real)) {
        Some(mac) => hops.set(number, mac, 0),
        None => hops.clear(number),
    }
}
