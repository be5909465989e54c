//! Makes of the rows of `settings.rs` everything about a setting: the field of [`BalancerState`],
//! the setter of [`Builder`] and its documentation, the range check, the key of the document, the
//! field of `Config`, the comparison of load-time settings, the change of others (a
//! [`LiveSetting`]), its constants in the program, and its row in `docs/configuration.md`.
//!
//! [`BalancerState`]: super::BalancerState
//! [`LiveSetting`]: super::LiveSetting
//! [`Builder`]: super::Builder

/// A row of the table in words, of which `docs/configuration.md` is made.
#[cfg(all(test, feature = "serde"))]
pub(crate) struct Row {
    pub(crate) key: &'static str,
    pub(crate) doc: &'static str,
    /// Its type, and how it is written.
    pub(crate) form: [&'static str; 2],
    pub(crate) unit: &'static str,
    pub(crate) default: &'static str,
    pub(crate) range: &'static str,
    pub(crate) changes: &'static str,
}

macro_rules! settings {
    ($(
        $(#[doc = $doc:literal])+
        $(#[doc(alias = $alias:literal)])*
        $key:ident: $given:ty $(=> $loaded:ty)? {
            set: $setter:ident($argument:ident: $type:ty) = $value:expr,
            default: $default:tt,
            range: $range:tt,
            unit: $unit:literal,
            key: $form:tt,
            changes: $changes:tt,
            $(constants: $constants:tt,)?
        }
    )+) => {
        /// A balancer's settings. `None` keeps the default at load, and the current value
        /// afterwards.
        ///
        /// [`Builder`] has the units and ranges, and says what changes after load; any other
        /// difference takes a replacement ([`Katran::apply`](crate::Katran::apply)).
        #[derive(Clone, Debug, Default, PartialEq)]
        #[non_exhaustive]
        pub struct BalancerState {$(
            #[doc = concat!(
                "See [`Builder::", stringify!($setter), "`](Builder::", stringify!($setter), ")."
            )]
            pub $key: Option<$given>,
        )+}

        /// # Settings
        impl Builder {$(
            $(#[doc = $doc])+
            #[doc = ""]
            #[doc = concat!(
                "Default: ", settings!(@default_text $default),
                ". Range: ", settings!(@range_text $range), "."
            )]
            #[doc = concat!("Unit: ", $unit, ". Changes after load: ", settings!(@changes_text $changes), ".")]
            $(#[doc(alias = $alias)])*
            pub fn $setter(mut self, $argument: $type) -> Self {
                self.given.$key = Some($value);
                self
            }
        )+}

        /// Settings that can be loaded on this machine.
        #[derive(Clone, Debug, PartialEq)]
        pub(crate) struct Config {
            $(pub(crate) $key: settings!(@loaded_type $default $given $(=> $loaded)?),)+
            /// Entries of each forwarding CPU's flow table.
            pub(crate) flows_per_cpu: u32,
            /// Ascending by CPU; never empty.
            pub(crate) placement: Vec<ForwardingCpu>,
        }

        impl Config {
            /// The given values, within their ranges, and the defaults for the rest; leaves the
            /// places of flow tables open.
            pub(super) fn of_each(builder: &Builder) -> Result<Self> {
                let given = &builder.given;
                $(if let Some(value) = &given.$key {
                    settings!(@check $range, stringify!($key), value);
                })+
                Ok(Self {
                    $($key: settings!(@load $default, $key, given.$key.clone()),)+
                    flows_per_cpu: 0,
                    placement: Vec::new(),
                })
            }
        }

        impl Config {
            /// Writes the settings into the constants that their rows name.
            pub(crate) fn write_constants(&self, constants: &mut types::rodata, tick: Duration) {
                $($(settings!(@write $constants, self.$key, constants, tick);)?)+
            }
        }

        impl BalancerState {
            /// The current settings.
            pub(crate) fn of(config: &Config) -> Self {
                Self {
                    $($key: settings!(@tell $default, config.$key.clone()),)+
                }
            }

            /// The keys of settings that differ in `wanted` and that only another load changes.
            pub(crate) fn load_changes(&self, wanted: &Self) -> Vec<&'static str> {
                let (current, wanted) = (&self.in_order(), &wanted.in_order());
                let mut changes = Vec::new();
                $(settings!(@load_change $changes, $key, current, wanted, changes);)+
                changes
            }

            /// These settings, with those load-time settings that `wanted` has.
            fn with_loaded(&self, wanted: &Self) -> Self {
                let mut merged = self.clone();
                $(settings!(@merge $changes, $key, merged, wanted);)+
                merged
            }

            /// The changes after load that lead to `wanted`. What `wanted` does not mention stays.
            pub(crate) fn live_changes(&self, wanted: &Self) -> Vec<LiveChange> {
                let mut changes = Vec::new();
                $(settings!(@live_change $changes, $default, $key, self, wanted, changes);)+
                changes
            }

            /// Settings that `wanted` does not mention and that must lose their value to match it.
            pub(crate) fn live_unset(&self, wanted: &Self) -> Vec<LiveSetting> {
                let mut unset = Vec::new();
                $(settings!(@live_unset $changes, $default, $key, self, wanted, unset);)+
                unset
            }
        }

        /// A setting that changes after load, with its wanted value. Load-time settings have no
        /// variant, so a `match` needs no arm for them.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(non_camel_case_types, reason = "the names are the settings' own")]
        #[allow(dead_code, reason = "there is none of a setting that is fixed at load")]
        pub(crate) enum LiveSetting {$(
            $key(settings!(@live_type $changes $default $given)),
        )+}

        impl LiveSetting {
            pub(crate) fn check(&self) -> Result<()> {
                match self {
                    $(Self::$key(value) => {
                        settings!(@live_check $changes, $default, $range, stringify!($key), value);
                    })+
                }
                Ok(())
            }
        }

        #[derive(Default, serde::Deserialize, serde::Serialize)]
        #[serde(default, deny_unknown_fields)]
        pub(crate) struct BalancerKeys {
            $(
                #[serde(skip_serializing_if = "Option::is_none")]
                $key: Option<settings!(@form $form $given)>,
            )+
        }

        impl From<BalancerKeys> for BalancerState {
            fn from(keys: BalancerKeys) -> Self {
                Self {
                    $($key: keys.$key.map(Form::read),)+
                }
            }
        }

        #[cfg(feature = "serde")]
        impl BalancerState {
            /// Reads the value of a key of `[balancer]`, and checks its range; `None`: there is no
            /// such key.
            pub(crate) fn read(&mut self, key: &str, value: &Value<'_>) -> Option<Result<(), Wrong>> {
                match key {
                    $(stringify!($key) => {
                        let read = read_as::<settings!(@form $form $given), $given>(value);
                        let range = settings!(@range_text $range);
                        Some(in_range(value, range, read, |value| {
                            settings!(@check $range, stringify!($key), value);
                            Ok(())
                        }).map(|value| self.$key = Some(value)))
                    })+
                    _ => None,
                }
            }
        }

        impl From<&BalancerState> for BalancerKeys {
            fn from(state: &BalancerState) -> Self {
                Self {
                    $($key: state.$key.clone().map(Form::write),)+
                }
            }
        }

        #[cfg(feature = "serde")]
        pub(crate) const SETTING_KEYS: &[&str] = &[$(stringify!($key)),+];

        #[cfg(all(test, feature = "serde"))]
        pub(crate) const ROWS: &[Row] = &[$(Row {
            key: stringify!($key),
            doc: concat!($($doc, "\n"),+),
            form: [stringify!($given), stringify!($form)],
            unit: $unit,
            default: settings!(@default_text $default),
            range: settings!(@range_text $range),
            changes: settings!(@changes_text $changes),
        },)+];
    };

    // default: `(value)`, with a text unless it is a plain number; `(by $text)` if it follows from
    // others, once all are checked; `none`; or `required`.
    (@default_text (by $text:literal)) => { $text };
    (@default_text ($value:expr, $text:literal)) => { $text };
    (@default_text ($value:literal)) => { stringify!($value) };
    (@default_text none) => { "none" };
    (@default_text required) => { "none: required" };
    (@loaded_type none $given:ty) => { Option<$given> };
    (@loaded_type (by $text:literal) $given:ty) => { Option<$given> };
    (@loaded_type $default:tt $given:ty) => { $given };
    (@loaded_type $default:tt $given:ty => $loaded:ty) => { $loaded };
    (@load none, $key:ident, $given:expr) => { $given };
    (@load (by $text:literal), $key:ident, $given:expr) => { $given };
    (@load required, $key:ident, $given:expr) => {
        $given.ok_or_else(|| missing(stringify!($key)))?
    };
    (@load ($value:expr $(, $text:literal)?), $key:ident, $given:expr) => {
        narrow(stringify!($key), $given.unwrap_or($value))?
    };
    (@tell none, $value:expr) => { $value };
    (@tell (by $text:literal), $value:expr) => { $value };
    (@tell $default:tt, $value:expr) => { Some($value.into()) };

    // range: `any`, with a text if there is more to say; `(1 to 9)`; or a text and a check.
    (@range_text any) => { "any" };
    (@range_text ($low:literal to $high:literal)) => {
        concat!(stringify!($low), " to ", stringify!($high))
    };
    (@range_text ($text:literal $(, $check:expr)?)) => { $text };
    (@check any, $key:expr, $value:ident) => { let _ = $value; };
    (@check ($low:literal to $high:literal), $key:expr, $value:ident) => {
        within($key, *$value, $low..=$high)?
    };
    (@check ($text:literal), $key:expr, $value:ident) => { let _ = $value; };
    (@check ($text:literal, $check:expr), $key:expr, $value:ident) => {
        checked($value, $check)?
    };

    // changes: `never`; `live`; or `(live through between)`.
    (@changes_text never) => { "by replacement" };
    (@changes_text $live:tt) => { "yes" };
    (@load_change never, $key:ident, $current:ident, $wanted:ident, $changes:ident) => {
        if $wanted.$key.is_some() && $wanted.$key != $current.$key {
            $changes.push(stringify!($key));
        }
    };
    (@load_change $live:tt, $($rest:tt)*) => {};
    (@merge never, $key:ident, $merged:ident, $wanted:ident) => {
        if $wanted.$key.is_some() {
            $merged.$key = $wanted.$key.clone();
        }
    };
    (@merge $live:tt, $key:ident, $merged:ident, $wanted:ident) => {};
    (@live_type never $default:tt $given:ty) => { Infallible };
    (@live_type $live:tt none $given:ty) => { Option<$given> };
    (@live_type $live:tt $default:tt $given:ty) => { $given };
    (@live_value none, $value:ident) => { Some($value) };
    (@live_value $default:tt, $value:ident) => { $value };
    (@live_change never, $($rest:tt)*) => {};
    (@live_change live, $($rest:tt)*) => {
        settings!(@live_change (live through |_, wanted| wanted.clone()), $($rest)*)
    };
    (@live_change (live through $between:expr), $default:tt, $key:ident, $current:ident, $wanted:ident, $changes:ident) => {
        if let Some([between, end]) = way(&$current.$key, &$wanted.$key, $between) {
            let live = |value| LiveSetting::$key(settings!(@live_value $default, value));
            $changes.push(LiveChange {
                setting: stringify!($key),
                between: between.map(live),
                end: end.map(live),
            });
        }
    };
    (@live_unset never, $($rest:tt)*) => {};
    (@live_unset $live:tt, none, $key:ident, $current:ident, $wanted:ident, $unset:ident) => {
        if $current.$key.is_some() && $wanted.$key.is_none() {
            $unset.push(LiveSetting::$key(None));
        }
    };
    (@live_unset $live:tt, $default:tt, $($rest:tt)*) => {};
    (@live_check never, $default:tt, $range:tt, $key:expr, $value:ident) => { match *$value {} };
    (@live_check $live:tt, none, $range:tt, $key:expr, $value:ident) => {
        if let Some(value) = $value {
            settings!(@check $range, $key, value);
        }
    };
    (@live_check $live:tt, $default:tt, $range:tt, $key:expr, $value:ident) => {
        settings!(@check $range, $key, $value);
    };
    // constants: those of the program, with the conversion of a value into each that differs from
    // it.
    (@write ($($constant:ident $(= $word:expr)?),+ $(,)?), $value:expr, $constants:ident, $tick:ident) => {
        $($constants.$constant = settings!(@word $value, $tick $(, $word)?);)+
    };
    (@word $value:expr, $tick:ident) => { $value.into() };
    (@word $value:expr, $tick:ident, $word:expr) => { write_by(&$value, $tick, $word) };

    // key: how the value is written.
    (@form plain $given:ty) => { $given };
    (@form list $given:ty) => { $given };
    (@form texts $given:ty) => { Texts<$given> };
    (@form text $given:ty) => { Text<$given> };
    (@form auto $given:ty) => { AutoOr };
    (@form set $given:ty) => { Set<$given> };
    (@form seconds $given:ty) => { Seconds };
    (@form whole $given:ty) => { Whole };
    (@form (prefix $length:literal) $given:ty) => { FirstOf<$given, $length> };
}
pub(super) use settings;
