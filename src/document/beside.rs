//! Keys of a document that another module reads: those of health checks.

use std::net::IpAddr;

use super::page::Page;
use crate::config::Value;
use crate::error::Result;
use crate::types::Vip;

/// Reads the keys of another module: `[health]`, and `health` of VIPs and reals.
pub(crate) trait Beside {
    /// The section, at most once.
    fn section(&mut self, page: &Page<'_>, value: &Value<'_>) -> Result<()>;

    /// The key of a VIP.
    fn of_vip(&mut self, vip: Vip, page: &Page<'_>, value: &Value<'_>) -> Result<()>;

    /// The key of a real of a VIP.
    fn of_real(&mut self, vip: Vip, real: IpAddr, page: &Page<'_>, value: &Value<'_>)
    -> Result<()>;
}

/// Reads nothing and refuses the keys: if they were ignored, an operator would believe that checks
/// run.
pub(super) struct Nobody;

fn nobody(page: &Page<'_>, value: &Value<'_>) -> Result<()> {
    let message = "this program does no health checks: remove the key health";
    Err(page.refuse(value.span().start, message))
}

impl Beside for Nobody {
    fn section(&mut self, page: &Page<'_>, value: &Value<'_>) -> Result<()> {
        nobody(page, value)
    }

    fn of_vip(&mut self, _: Vip, page: &Page<'_>, value: &Value<'_>) -> Result<()> {
        nobody(page, value)
    }

    fn of_real(&mut self, _: Vip, _: IpAddr, page: &Page<'_>, value: &Value<'_>) -> Result<()> {
        nobody(page, value)
    }
}
