//! What the library logs, separately for each thread.

use std::cell::RefCell;
use std::sync::Once;

use log::Level;
use log::LevelFilter;
use log::Log;
use log::Metadata;
use log::Record;

struct Heard;

thread_local! {
    static HEARD: RefCell<Option<Vec<(Level, String)>>> = const { RefCell::new(None) };
}

impl Log for Heard {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        HEARD.with_borrow_mut(|heard| {
            if let Some(heard) = heard {
                heard.push((record.level(), record.args().to_string()));
            }
        });
    }

    fn flush(&self) {}
}

/// Runs `f`, and returns what this thread logged meanwhile.
pub(crate) fn heard<T>(f: impl FnOnce() -> T) -> (T, Vec<(Level, String)>) {
    static SET: Once = Once::new();
    SET.call_once(|| {
        log::set_logger(&Heard).unwrap();
        log::set_max_level(LevelFilter::Info);
    });
    HEARD.set(Some(Vec::new()));
    let outcome = f();
    (outcome, HEARD.take().unwrap_or_default())
}
