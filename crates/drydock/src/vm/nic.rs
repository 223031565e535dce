//! The value of `--nic`: `bridge=NAME` and optionally `mac=ADDRESS`.

use std::fmt;
use std::str::FromStr;

use host::api::CreateNic;
use machine::NicSpec;

/// What every refusal shows.
const EXAMPLE: &str = "bridge=br0,mac=52:54:00:12:34:56";
/// Addresses and names that pass every check: one key is checked while the other stands still.
const GOOD_BRIDGE: &str = "br0";
const GOOD_MAC: &str = "52:54:00:12:34:56";

/// One network card, as it was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NicArg {
    bridge: String,
    mac: Option<String>,
}

impl From<NicArg> for CreateNic {
    fn from(arg: NicArg) -> Self {
        CreateNic { bridge: arg.bridge, mac: arg.mac }
    }
}

/// Why a value of `--nic` is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NicError {
    /// A part without `=`.
    NoKey(String),
    UnknownKey(String),
    Twice(&'static str),
    Missing(&'static str),
    /// A value that breaks a rule of `machine`, with its words.
    Value {
        key: &'static str,
        rule: String,
    },
}

impl fmt::Display for NicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NicError::NoKey(part) => write!(f, "'{part}' is not of the form key=value")?,
            NicError::UnknownKey(key) => write!(f, "unknown key '{key}'; the keys are 'bridge' and 'mac'")?,
            NicError::Twice(key) => write!(f, "key '{key}' is given twice")?,
            NicError::Missing(key) => write!(f, "key '{key}' is missing")?,
            NicError::Value { key, rule } => write!(f, "key '{key}': {rule}")?,
        }
        write!(f, " (example: {EXAMPLE})")
    }
}

impl std::error::Error for NicError {}

impl FromStr for NicArg {
    type Err = NicError;

    fn from_str(text: &str) -> Result<Self, NicError> {
        let (mut bridge, mut mac) = (None, None);
        for part in text.split(',') {
            let (key, value) = part.split_once('=').ok_or_else(|| NicError::NoKey(part.to_owned()))?;
            let (name, place) = match key {
                "bridge" => ("bridge", &mut bridge),
                "mac" => ("mac", &mut mac),
                other => return Err(NicError::UnknownKey(other.to_owned())),
            };
            if place.replace(value.to_owned()).is_some() {
                return Err(NicError::Twice(name));
            }
        }
        let bridge = bridge.ok_or(NicError::Missing("bridge"))?;
        check("bridge", &bridge, GOOD_MAC)?;
        if let Some(mac) = &mac {
            check("mac", GOOD_BRIDGE, mac)?;
        }
        Ok(NicArg { bridge, mac })
    }
}

fn check(key: &'static str, bridge: &str, mac: &str) -> Result<(), NicError> {
    let card = NicSpec { switch: bridge.to_owned(), mac: mac.to_owned() };
    card.validate().map_err(|error| match error {
        machine::Error::Spec { reason, .. } => NicError::Value { key, rule: reason },
        other => NicError::Value { key, rule: other.to_string() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> NicError {
        text.parse::<NicArg>().expect_err(text)
    }

    #[test]
    fn a_card_has_a_bridge_and_perhaps_an_address() {
        let card = |mac: Option<&str>| NicArg { bridge: "br0".into(), mac: mac.map(str::to_owned) };
        assert_eq!("bridge=br0".parse(), Ok(card(None)));
        assert_eq!(EXAMPLE.parse(), Ok(card(Some("52:54:00:12:34:56"))));
        assert_eq!("mac=52:54:00:12:34:56,bridge=br0".parse(), Ok(card(Some("52:54:00:12:34:56"))));
    }

    #[test]
    fn the_key_that_is_wrong_is_named() {
        assert_eq!(refused("br0"), NicError::NoKey("br0".into()));
        assert_eq!(refused(""), NicError::NoKey(String::new()));
        assert_eq!(refused("bridge=br0,"), NicError::NoKey(String::new()));
        assert_eq!(refused("brige=br0"), NicError::UnknownKey("brige".into()));
        assert_eq!(refused("bridge=br0,script=/tmp/x"), NicError::UnknownKey("script".into()));
        assert_eq!(refused("bridge=br0,bridge=br1"), NicError::Twice("bridge"));
        assert_eq!(refused("mac=52:54:00:12:34:56"), NicError::Missing("bridge"));
        for (text, bad) in [
            ("bridge=", "bridge"),
            ("bridge=../../etc", "bridge"),
            ("bridge=a-name-that-is-too-long", "bridge"),
            ("bridge=br0\n-s", "bridge"),
            ("bridge=br0,mac=", "mac"),
            ("bridge=br0,mac=52:54:00:00:00", "mac"),
            ("bridge=br0,mac=01:00:5e:00:00:01", "mac"),
            ("bridge=br0,mac=52:54:00:00:00:01\n-s", "mac"),
        ] {
            assert!(
                matches!(refused(text), NicError::Value { key, .. } if key == bad),
                "{text:?}: {:?}",
                refused(text)
            );
        }
    }

    #[test]
    fn every_refusal_shows_an_example() {
        for text in ["br0", "brige=br0", "bridge=br0,bridge=br0", "mac=x", "bridge=.", "bridge=br0,mac=x"] {
            let said = refused(text).to_string();
            assert!(said.contains(EXAMPLE), "{text}: {said}");
        }
    }
}
