//! Reads a VIP and its reals from the tables of a document.

use std::net::IpAddr;
use std::net::SocketAddr;

use super::beside::Beside;
use super::page::Host;
use super::page::Keys;
use super::sections::HEALTH;
use super::sections::REAL;
use super::state::VipState;
use crate::config::Set;
use crate::config::Text;
use crate::error::Error;
use crate::error::Result;
use crate::types::HashFunction;
use crate::types::Protocol;
use crate::types::Real;
use crate::types::RealFlags;
use crate::types::Vip;
use crate::types::VipFlags;
use crate::types::check_real;
use crate::types::check_vip;
use crate::types::check_vip_flags;

/// Reads a VIP and records the places of its reals.
pub(super) fn vip(
    keys: &Keys<'_, '_, '_>,
    places: &mut Vec<usize>,
    beside: &mut dyn Beside,
) -> Result<VipState> {
    // The prefix length decides whether the address may be unspecified.
    let address = keys.address("address", Host::Vip, |_| Ok(()))?;
    let length = keys.given("prefix_length")?;
    let address = SocketAddr::new(address, keys.needed("port")?);
    let Text(protocol) = keys.needed::<Text<Protocol>>("protocol")?;
    let mut vip = Vip::new(address, protocol);
    if let Some(length) = length {
        vip = keys.checked("prefix_length", vip.with_prefix(length))?;
    }
    keys.checked("address", check_vip(&vip))?;
    let flags: Option<Set<VipFlags>> = keys.given("flags")?;
    let mut state = VipState::new(vip);
    if let Some(Set(flags)) = flags {
        keys.checked("flags", check_vip_flags(&vip, flags))?;
        state.flags = flags;
    }
    let hash: Option<Text<HashFunction>> = keys.given("hash")?;
    state.hash = hash.map(|Text(hash)| hash);
    let page = keys.page;
    if let Some(value) = keys.value(HEALTH) {
        beside.of_vip(vip, page, value)?;
    }
    if let (Some(key), Some(value)) = (keys.key("reals"), keys.value("reals")) {
        let reals = page.tables(&REAL, key, value)?;
        state.reals.reserve_exact(reals.len());
        for value in reals {
            let keys = Keys::new(page, &REAL, value)?;
            let real = real(&keys)?;
            if keys.given("down")? == Some(true) {
                state.down.push(real.address());
            }
            if let Some(value) = keys.value(HEALTH) {
                beside.of_real(vip, real.address(), page, value)?;
            }
            state.reals.push(real);
            places.push(keys.at);
        }
    }
    Ok(state)
}

fn real(keys: &Keys<'_, '_, '_>) -> Result<Real> {
    let address: IpAddr = keys.address("address", Host::Real, check_real)?;
    let mut real = Real::new(address);
    if let Some(weight) = keys.given("weight")? {
        real = real.weight(weight);
    }
    let mut flags = RealFlags::empty();
    let local = keys.given("local")?;
    flags.set(RealFlags::LOCAL_REAL, local == Some(true));
    if let Some(bits) = keys.given("application_flags")? {
        let application = RealFlags::from_bits_retain(bits);
        let is_ours = !RealFlags::APPLICATION.contains(application);
        keys.checked(
            "application_flags",
            match is_ours {
                false => Ok(()),
                true => Err(Error::InvalidConfig {
                    setting: "application_flags",
                    value: bits.to_string(),
                    reason: "bits 0 and 1 are reserved: use a multiple of 4, up to 252".to_owned(),
                }),
            },
        )?;
        flags |= application;
    }
    Ok(match flags.is_empty() {
        true => real,
        false => real.flags(flags),
    })
}
