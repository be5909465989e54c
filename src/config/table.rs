//! Makes of the rows of `settings.rs` all that a setting is: the field of [`BalancerState`], the
//! setter of [`Builder`] and its documentation, the range check, the key of the document, the field of
//! `Config`, the comparison with what is fixed at load, its constants in the program, and its row in
//! `docs/configuration.md`.
//!
//! [`BalancerState`]: super::BalancerState
//! [`Builder`]: super::Builder

/// What a row of the table says in words; `docs/configuration.md` is made of them.
#[cfg(test)]
pub(super) struct Row {
    pub(super) key: &'static str,
    pub(super) doc: &'static str,
    pub(super) unit: &'static str,
    pub(super) default: &'static str,
    pub(super) range: &'static str,
    pub(super) changes: &'static str,
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
            changes: $changes:ident,
            $(constants: $constants:tt,)?
        }
    )+) => {
        /// The settings of a balancer; what is `None` keeps its default at load and its value after.
        ///
        /// Units and ranges are those of [`Builder`]. After load, only the gateway, the source
        /// addresses and the features can change; any other difference is
        /// [`Error::LoadTimeSetting`](crate::Error::LoadTimeSetting).
        #[derive(Clone, Debug, Default, PartialEq)]
        #[non_exhaustive]
        pub struct BalancerState {$(
            #[doc = concat!(
                "See [`Builder::", stringify!($setter), "`](Builder::", stringify!($setter), ")."
            )]
            pub $key: Option<$given>,
        )+}

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
            /// Ascending by CPU; at least one.
            pub(crate) placement: Vec<ForwardingCpu>,
        }

        impl Config {
            /// What was given, within its ranges, and the defaults for the rest; the places of the flow
            /// tables are left open.
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

            /// Refuses settings that only a new load could bring about. What either side does not say
            /// is not compared.
            pub(crate) fn check_load_time(&self, wanted: &Self) -> Result<()> {
                // CPUs and nodes are compared in the order in which they are kept.
                let (current, wanted) = (&self.in_order(), &wanted.in_order());
                $(settings!(@compare $changes, $form, stringify!($key), current.$key, wanted.$key);)+
                Ok(())
            }
        }

        /// The keys of `[balancer]`.
        #[cfg(feature = "serde")]
        #[derive(Default, serde::Deserialize, serde::Serialize)]
        #[serde(default, deny_unknown_fields)]
        pub(crate) struct BalancerKeys {
            $(
                #[serde(skip_serializing_if = "Option::is_none")]
                $key: Option<settings!(@form $form $given)>,
            )+
        }

        #[cfg(feature = "serde")]
        impl From<BalancerKeys> for BalancerState {
            fn from(keys: BalancerKeys) -> Self {
                Self {
                    $($key: keys.$key.map(Form::read),)+
                }
            }
        }

        #[cfg(feature = "serde")]
        impl From<&BalancerState> for BalancerKeys {
            fn from(state: &BalancerState) -> Self {
                Self {
                    $($key: state.$key.clone().map(Form::write),)+
                }
            }
        }

        /// The rows, in words.
        #[cfg(test)]
        pub(super) const ROWS: &[Row] = &[$(Row {
            key: stringify!($key),
            doc: concat!($($doc, "\n"),+),
            unit: $unit,
            default: settings!(@default_text $default),
            range: settings!(@range_text $range),
            changes: settings!(@changes_text $changes),
        },)+];
    };

    // default: `(value)`, with a text if it is no plain number; `none`; or `required`.
    (@default_text ($value:expr, $text:literal)) => { $text };
    (@default_text ($value:literal)) => { stringify!($value) };
    (@default_text none) => { "none" };
    (@default_text required) => { "none, it has to be given" };
    (@loaded_type none $given:ty) => { Option<$given> };
    (@loaded_type $default:tt $given:ty) => { $given };
    (@loaded_type $default:tt $given:ty => $loaded:ty) => { $loaded };
    (@load none, $key:ident, $given:expr) => { $given };
    (@load required, $key:ident, $given:expr) => {
        $given.ok_or_else(|| missing(stringify!($key)))?
    };
    (@load ($value:expr $(, $text:literal)?), $key:ident, $given:expr) => {
        narrow(stringify!($key), $given.unwrap_or($value))?
    };
    (@tell none, $value:expr) => { $value };
    (@tell $default:tt, $value:expr) => { Some($value.into()) };

    // range: `any`, with a text if there is something to say; `(1 to 9)`; or a text and a check.
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

    // changes: `never`, or `live`.
    (@changes_text never) => { "no" };
    (@changes_text live) => { "yes" };
    (@compare live, $form:tt, $key:expr, $current:expr, $wanted:expr) => {};
    (@compare never, $form:tt, $key:expr, $current:expr, $wanted:expr) => {
        same($key, &$current, &$wanted, settings!(@shown $form))?
    };
    (@shown list) => { |value| format!("{value:?}") };
    (@shown seconds) => { |value| format!("{value:?}") };
    (@shown $form:tt) => { |value| value.to_string() };

    // constants: those of the program, with how a value is written into each that it is not itself.
    (@write ($($constant:ident $(= $word:expr)?),+ $(,)?), $value:expr, $constants:ident, $tick:ident) => {
        $($constants.$constant = settings!(@word $value, $tick $(, $word)?);)+
    };
    (@word $value:expr, $tick:ident) => { $value.into() };
    (@word $value:expr, $tick:ident, $word:expr) => { write_by(&$value, $tick, $word) };

    // key: how the value is written.
    (@form plain $given:ty) => { $given };
    (@form list $given:ty) => { $given };
    (@form text $given:ty) => { Text<$given> };
    (@form auto $given:ty) => { AutoOr };
    (@form set $given:ty) => { Set<$given> };
    (@form seconds $given:ty) => { Seconds };
    (@form (prefix $length:literal) $given:ty) => { FirstOf<$given, $length> };
}
pub(super) use settings;
