//! Tunnels that end at the balancer.

use std::net::IpAddr;

use super::Katran;
use super::remember::only;
use crate::error::Error;
use crate::error::Result;
use crate::ledger::Change;
use crate::skel::katran::types;
use crate::sys::map::Typed;
use crate::types::DecapMode;
use crate::types::Family;
use crate::types::address_bytes;
use crate::types::check_host;

/// The addresses at which tunnels end: [`Katran::decap`].
///
/// ```no_run
/// # fn example(katran: &katran::Katran) -> katran::Result<()> {
/// for (address, mode) in katran.decap().list() {
///     println!("tunnels to {address} end here ({mode})");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "a view does nothing by itself"]
pub struct InlineDecap<'a> {
    katran: &'a Katran,
}

impl InlineDecap<'_> {
    /// The addresses at which tunnels end, sorted.
    #[doc(alias = "getInlineDecapDst")]
    pub fn list(&self) -> Vec<(IpAddr, DecapMode)> {
        let ends = self.katran.decap.iter();
        ends.map(|(address, mode)| (*address, *mode)).collect()
    }
}

/// Changes the addresses at which tunnels end: [`Katran::decap_mut`].
///
/// ```no_run
/// use katran::DecapMode;
///
/// # fn example(katran: &mut katran::Katran) -> katran::Result<()> {
/// let address = "192.0.2.200".parse().unwrap();
/// katran.decap_mut().add(address, DecapMode::Inline)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a view does nothing by itself"]
pub struct InlineDecapMut<'a> {
    katran: &'a mut Katran,
}

impl InlineDecapMut<'_> {
    /// Ends tunnels (IP in IP, and GUE to `gue_port`) at an address. The inner packet is then
    /// balanced like any other or sent back out, according to `mode`. The program also unwraps
    /// tunnels to this host's own source addresses, and passes the inner packet to the network
    /// stack. Other tunnels pass as they are.
    ///
    /// **Without [`Features::STRICT_DESTINATION`](crate::Features::STRICT_DESTINATION) the program
    /// takes tunnels to any address for the host's own**, and unwraps them for anybody. A set of
    /// features has it only if you name it beside `INLINE_DECAP` or begin with the default set.
    ///
    /// Congestion marks in the outer header reach the inner packet (RFC 6040). Reasons for drops
    /// are [`DropReason`](crate::stats::DropReason) `InnerTruncated`, `InnerVersion`,
    /// `InnerExpired`, `Ecn`; `NestedTunnel` with [`DecapMode::Egress`]; and `OuterSource` and
    /// `EgressSource` where [`Builder::allow_sources`](crate::Builder::allow_sources) and
    /// [`egress_sources`](crate::Builder::egress_sources) limit tunnels.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without [`Features::INLINE_DECAP`](crate::Features::INLINE_DECAP);
    /// [`Error::AlreadyExists`], even with another mode; [`Error::Exhausted`] beyond `max_decap`;
    /// [`Error::InvalidAddress`]; [`Error::Kernel`].
    #[doc(alias = "addInlineDecapDst")]
    pub fn add(&mut self, address: IpAddr, mode: DecapMode) -> Result<()> {
        let _call = self.katran.call()?;
        let address = address.to_canonical();
        if let Some(mode) = self.katran.decap.get(&address) {
            return Err(Error::AlreadyExists {
                what: format!("decap address {address} ({mode})"),
            });
        }
        self.katran.set_decap(address, mode)
    }

    /// Stops ending tunnels at an address.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without [`Features::INLINE_DECAP`](crate::Features::INLINE_DECAP);
    /// [`Error::NotFound`]; [`Error::Kernel`].
    #[doc(alias = "delInlineDecapDst")]
    pub fn remove(&mut self, address: IpAddr) -> Result<()> {
        let _call = self.katran.call()?;
        let address = address.to_canonical();
        self.katran.decap_map()?;
        if !self.katran.decap.contains_key(&address) {
            return Err(Error::NotFound {
                what: format!("decap address {address}"),
            });
        }
        let kept = Change::Decap(address, None);
        self.katran.change_at_once(only(kept), |katran| {
            let removed = katran.decap_map()?.delete(&key(address));
            let kernel = &katran.kernel;
            kernel.check("remove the decap address", &address.to_string(), removed)?;
            katran.decap.remove(&address);
            Ok(())
        })
    }
}

/// # Tunnels that end here
impl Katran {
    /// The addresses at which tunnels end.
    pub fn decap(&self) -> InlineDecap<'_> {
        InlineDecap { katran: self }
    }

    /// Changes the addresses at which tunnels end.
    pub fn decap_mut(&mut self) -> InlineDecapMut<'_> {
        InlineDecapMut { katran: self }
    }

    pub(super) fn set_decap(&mut self, address: IpAddr, mode: DecapMode) -> Result<()> {
        let new = usize::from(!self.decap.contains_key(&address));
        self.note(self.check_decap(address, self.decap.len() + new))?;
        let kept = Change::Decap(address, Some(mode.stored()));
        self.change_at_once(only(kept), |katran| {
            katran.write_decap(address, Some(mode))?;
            katran.decap.insert(address, mode);
            Ok(())
        })
    }

    /// Makes packets find an address, or no longer find it.
    pub(super) fn write_decap(&self, address: IpAddr, mode: Option<DecapMode>) -> Result<()> {
        let Some(map) = &self.maps.features.decap_destinations else {
            // Without the feature no tunnel ends anywhere.
            return mode.map_or(Ok(()), |_| Err(Self::no_inline_decap()));
        };
        let number = mode.map(|mode| match mode {
            DecapMode::Inline => types::decap_mode::DECAP_INLINE,
            DecapMode::Egress => types::decap_mode::DECAP_EGRESS,
        });
        let (what, written) = match number {
            Some(number) => (
                "add the decap address",
                map.update(&key(address), &number.0),
            ),
            None => (
                "remove the decap address",
                map.delete(&key(address)).map(drop),
            ),
        };
        self.kernel.check(what, &address.to_string(), written)
    }

    /// Checks an address, and that there is room for `count`.
    fn check_decap(&self, address: IpAddr, count: usize) -> Result<()> {
        self.decap_map()?;
        self.check_decap_room(address, count)
    }

    /// Checks that there is room for `count` addresses, including this one.
    pub(super) fn check_decap_room(&self, address: IpAddr, count: usize) -> Result<()> {
        check_host(address)?;
        let limit = self.config.max_decap;
        match count > limit as usize {
            false => Ok(()),
            true => Err(Error::Exhausted {
                what: "decap addresses (max_decap)",
                limit: limit.into(),
            }),
        }
    }

    fn decap_map(&self) -> Result<&Typed<types::decap_destination, u32>> {
        let map = self.maps.features.decap_destinations.as_ref();
        map.ok_or_else(Self::no_inline_decap)
    }

    pub(super) fn no_inline_decap() -> Error {
        Error::Unsupported {
            what: "a decap address".to_owned(),
            reason: "the balancer was loaded without the feature inline-decap: switch it on",
        }
    }
}

fn key(address: IpAddr) -> types::decap_destination {
    types::decap_destination {
        address: address_bytes(address),
        family: Family::of(address).number().into(),
    }
}
