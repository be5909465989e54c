//! What the table of settings makes of the rows that change after load.

use super::Features;
use super::settings::BalancerState;
use super::settings::LiveChange;
use super::settings::LiveSetting;
use crate::types::MacAddr;

#[test]
fn a_live_setting_has_its_value_at_once_or_goes_through_another() {
    let state = |features, gateway_mac_v6| BalancerState {
        features: Some(features),
        gateway_mac_v6,
        ..BalancerState::default()
    };
    let (big, local) = (Features::ICMP_TOO_BIG, Features::LOCAL_DELIVERY);
    let mac = MacAddr::new([2, 0, 0, 0, 0, 1]);
    let set = |features| Some(LiveSetting::features(features));
    for (before, wanted, between, end) in [
        (big, local, set(big | local), set(local)),
        (big, big | local, set(big | local), None),
        (big | local, big, None, set(big)),
    ] {
        let changes = state(before, Some(mac)).live_changes(&state(wanted, None));
        let setting = "features";
        assert_eq!(
            changes,
            [LiveChange {
                setting,
                between,
                end
            }]
        );
    }
    let (with, without) = (state(big, Some(mac)), state(big, None));
    assert_eq!(
        without.live_changes(&with),
        [LiveChange {
            setting: "gateway_mac_v6",
            between: Some(LiveSetting::gateway_mac_v6(Some(mac))),
            end: None,
        }]
    );
    assert_eq!(
        with.live_unset(&without),
        [LiveSetting::gateway_mac_v6(None)]
    );
    assert_eq!(without.live_unset(&with), []);
    let wrong = MacAddr::new([0xff; 6]);
    assert!(LiveSetting::gateway_mac_v6(Some(wrong)).check().is_err());
    assert!(LiveSetting::gateway_mac_v6(Some(mac)).check().is_ok());
}
