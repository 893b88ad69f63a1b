//! Environment variables of the usual types.

use std::time::Duration;

use super::Problem;

/// Reads variables and collects what is wrong with them.
pub(super) struct Reader<'a, V: Fn(&'static str) -> Option<String>> {
    /// Where variables come from.
    pub(super) variable: &'a V,
    /// What was found wrong so far.
    pub(super) problems: Vec<Problem>,
}

impl<V: Fn(&'static str) -> Option<String>> Reader<'_, V> {
    /// A variable that is set to something; an empty one counts as unset.
    pub(super) fn optional(&self, name: &'static str) -> Option<String> {
        (self.variable)(name).filter(|it| !it.is_empty())
    }

    /// A variable that must be set.
    pub(super) fn required(&mut self, name: &'static str, hint: &str) -> String {
        self.flag_or_required(None, name, hint)
    }

    /// A flag, or else the variable that must be set.
    pub(super) fn flag_or_required(
        &mut self,
        flag: Option<String>,
        name: &'static str,
        hint: &str,
    ) -> String {
        flag.filter(|it| !it.is_empty()).or_else(|| self.optional(name)).unwrap_or_else(|| {
            self.problems.push(Problem::new(name, format!("is missing; {hint}")));
            String::new()
        })
    }

    /// Something that is on or off, and off when unset.
    pub(super) fn switch(&mut self, name: &'static str) -> bool {
        let text = self.optional(name).unwrap_or_default().to_ascii_lowercase();
        if !matches!(text.as_str(), "" | "true" | "false") {
            self.problems.push(Problem::new(name, "must be true or false"));
        }
        text == "true"
    }

    /// The same for a setting of the old broker, to which any text meant on; here what says no means off.
    pub(super) fn old_switch(&mut self, name: &'static str) -> bool {
        let text = self.optional(name).unwrap_or_default().to_ascii_lowercase();
        !matches!(text.as_str(), "" | "false" | "0" | "no" | "off")
    }

    /// A whole number between `min` and `max`.
    pub(super) fn number<T>(&mut self, name: &'static str, default: T, min: T, max: T) -> T
    where
        T: std::str::FromStr + PartialOrd + Copy + std::fmt::Display,
    {
        let Some(text) = self.optional(name) else {
            return default;
        };
        match text.trim().parse::<T>() {
            Ok(number) if number >= min && number <= max => number,
            Ok(_) | Err(_) => {
                self.problems.push(Problem::new(name, format!("must be a whole number from {min} to {max}")));
                default
            }
        }
    }

    /// A span of time such as `90s`, `20m`, `1h`, from `min` to `max`; a bare number counts seconds.
    pub(super) fn span(
        &mut self,
        name: &'static str,
        default: Duration,
        min: Duration,
        max: Duration,
    ) -> Duration {
        let Some(text) = self.optional(name) else {
            return default;
        };
        let text = text.trim();
        let (digits, unit_s) = match text.char_indices().last() {
            Some((end, 's')) => (text.get(..end), 1),
            Some((end, 'm')) => (text.get(..end), 60),
            Some((end, 'h')) => (text.get(..end), 3_600),
            Some(_) | None => (Some(text), 1),
        };
        let span = digits
            .and_then(|it| it.parse::<u64>().ok())
            .and_then(|it| it.checked_mul(unit_s))
            .map(Duration::from_secs)
            .filter(|it| (min..=max).contains(it));
        span.unwrap_or_else(|| {
            let (min, max) = (min.as_secs(), max.as_secs());
            let complaint = format!("must be a time such as 90s, 20m or 1h, {min} to {max} s");
            self.problems.push(Problem::new(name, complaint));
            default
        })
    }
}
