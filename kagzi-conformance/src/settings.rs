//! How much the random cases play, and with which dice: variables of the environment.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::str::FromStr;

/// The number that all dice of the random cases come from: a number repeats a run, `random` plays a
/// different one each time. 1 unless set, so that a suite gives the same verdict twice.
pub const SEED_VARIABLE: &str = "KAGZI_CONFORMANCE_SEED";

/// How many operations the cases of the group `model` play on a store, all together; 10,000 unless set.
pub const MODEL_VARIABLE: &str = "KAGZI_CONFORMANCE_MODEL_OPERATIONS";

/// How many operations the cases of the group `history` play on a store, all together; 5,000 unless set.
pub const HISTORY_VARIABLE: &str = "KAGZI_CONFORMANCE_HISTORY_OPERATIONS";

/// How many operations the random cases of the group `fault` send through faults, each; 500 unless set.
pub const FAULT_VARIABLE: &str = "KAGZI_CONFORMANCE_FAULT_OPERATIONS";

/// A variable of the environment that says nothing of sense. It is a mistake of whoever started the
/// suite and no fault of a store, so it is told once, before any case is played.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable}: expected {expected}, got {got:?}; correct it or unset it")]
pub struct SettingsError {
    /// The name of the variable.
    pub variable: &'static str,
    /// What it may say.
    pub expected: &'static str,
    /// What it said.
    pub got: String,
}

/// How much the random cases play, and with which dice. The default is what the suite is meant to be
/// judged by; [`from_environment`](Self::from_environment) takes what the variables ask for instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The number that all dice come from: [`SEED_VARIABLE`].
    pub seed: u64,
    /// How many operations the group `model` plays, at least one: [`MODEL_VARIABLE`].
    pub model_operations: usize,
    /// How many operations the group `history` plays, at least one: [`HISTORY_VARIABLE`].
    pub history_operations: usize,
    /// How many operations each random case of the group `fault` sends, at least one: [`FAULT_VARIABLE`].
    pub fault_operations: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { seed: 1, model_operations: 10_000, history_operations: 5_000, fault_operations: 500 }
    }
}

impl Settings {
    /// What the variables of the environment ask for; the default where they are silent.
    ///
    /// # Errors
    ///
    /// [`SettingsError`] naming the first variable that makes no sense.
    pub fn from_environment() -> Result<Self, SettingsError> {
        Self::read(std::env::var_os::<&str>)
    }

    fn read(variable: impl Fn(&'static str) -> Option<OsString>) -> Result<Self, SettingsError> {
        let default = Self::default();
        let operations = |name, default| at_least_one(name, default, variable(name));
        Ok(Self {
            seed: seed(default.seed, variable(SEED_VARIABLE))?,
            model_operations: operations(MODEL_VARIABLE, default.model_operations)?,
            history_operations: operations(HISTORY_VARIABLE, default.history_operations)?,
            fault_operations: operations(FAULT_VARIABLE, default.fault_operations)?,
        })
    }
}

fn seed(default: u64, text: Option<OsString>) -> Result<u64, SettingsError> {
    match text {
        None => Ok(default),
        Some(text) if text == "random" => Ok(fastrand::u64(..)),
        Some(text) => number(SEED_VARIABLE, "a whole number from 0 to 2^64 - 1, or `random`", &text),
    }
}

/// What a variable says, or `default` if it is not set. 0 is refused: nothing would be proved, and all pass.
pub(crate) fn at_least_one<N: FromStr + fmt::Display + Default + PartialEq>(
    variable: &'static str,
    default: N,
    text: Option<OsString>,
) -> Result<N, SettingsError> {
    const EXPECTED: &str = "a whole number from 1";
    let Some(text) = text else { return Ok(default) };
    let number: N = number(variable, EXPECTED, &text)?;
    if number == N::default() {
        return Err(SettingsError { variable, expected: EXPECTED, got: number.to_string() });
    }
    Ok(number)
}

/// The number that a variable says.
pub(crate) fn number<N: FromStr>(
    variable: &'static str,
    expected: &'static str,
    text: &OsStr,
) -> Result<N, SettingsError> {
    let number = text.to_str().and_then(|text| text.parse().ok());
    number.ok_or_else(|| {
        let got = text.to_string_lossy().into_owned();
        SettingsError { variable, expected, got }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(set: &'static str, text: &str) -> Result<Settings, SettingsError> {
        Settings::read(|variable| (variable == set).then(|| text.into()))
    }

    #[test]
    fn what_is_not_set_is_as_stated() {
        assert_eq!(read("ANOTHER", "x"), Ok(Settings::default()));
    }

    #[test]
    fn each_variable_is_taken_and_no_other_changes() {
        let default = Settings::default();
        assert_eq!(read(SEED_VARIABLE, "0"), Ok(Settings { seed: 0, ..default }));
        assert_eq!(read(MODEL_VARIABLE, "7"), Ok(Settings { model_operations: 7, ..default }));
        assert_eq!(read(HISTORY_VARIABLE, "8"), Ok(Settings { history_operations: 8, ..default }));
        assert_eq!(read(FAULT_VARIABLE, "1"), Ok(Settings { fault_operations: 1, ..default }));
        let random = read(SEED_VARIABLE, "random").unwrap();
        assert_eq!(random, Settings { seed: random.seed, ..default });
    }

    #[test]
    fn what_makes_no_sense_is_told_with_the_variable_and_what_came() {
        let wrong = [
            (SEED_VARIABLE, "-1"),
            (SEED_VARIABLE, "Random"),
            (SEED_VARIABLE, ""),
            (MODEL_VARIABLE, "many"),
            (MODEL_VARIABLE, "0"),
            (HISTORY_VARIABLE, "0"),
            (FAULT_VARIABLE, "1.5"),
        ];
        for (variable, text) in wrong {
            let error = read(variable, text).unwrap_err();
            assert_eq!((error.variable, error.got.as_str()), (variable, text));
            let told = error.to_string();
            assert!(told.starts_with(&format!("{variable}: expected a whole number")), "{told}");
        }
        let told = read(MODEL_VARIABLE, "0").unwrap_err().to_string();
        assert!(told.ends_with("got \"0\"; correct it or unset it"), "{told}");
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_text_is_told_too() {
        use std::os::unix::ffi::OsStringExt as _;
        let error = Settings::read(|_| Some(OsString::from_vec(vec![b'1', 0xff]))).unwrap_err();
        assert_eq!(error.variable, SEED_VARIABLE);
    }
}
