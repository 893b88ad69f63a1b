//! The form of the names that brokers give to bucket and user.

/// Who gives names of a form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// The old broker: eight digits.
    Old,
    /// This one: sixteen.
    New,
}

impl Form {
    /// Reads a prefix, `-u`, 8 or 16 hexadecimal digits and perhaps `-` and 8 more. Gives the prefix too;
    /// `None`: no name of a broker.
    pub(crate) fn read(name: &str) -> Option<(&str, Form)> {
        let is_hex = |text: &str, length: usize| {
            text.len() == length && text.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'))
        };
        let (prefix, rest) = name.rsplit_once("-u")?; // no digit is a u
        let digits = match rest.split_once('-') {
            Some((digits, more)) => Some(digits).filter(|_| is_hex(more, 8))?,
            None => rest,
        };
        match digits.len() {
            8 if is_hex(digits, 8) => Some((prefix, Form::Old)),
            16 if is_hex(digits, 16) => Some((prefix, Form::New)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_a_broker_gives_have_a_form() {
        for (name, form) in [
            ("tst-u0123456789abcdef", Some(("tst", Form::New))),
            ("tst-u4b36b824", Some(("tst", Form::Old))),
            ("tst-u4b36b824-89abcdef", Some(("tst", Form::Old))),
            ("tst-u0123456789abcdef-89abcdef", Some(("tst", Form::New))),
            ("a-u-u4b36b824", Some(("a-u", Form::Old))),
            ("a-u-u", None),
            ("tst-u4b36b82", None),
            ("tst-u4b36b8245", None),
            ("tst-u4B36B824", None),
            ("tst-u0123456789ABCDEF", None),
            ("tst-u4b36b82x", None),
            ("tst-u4b36b824-", None),
            ("tst-u4b36b824-89abcdef-89abcdef", None),
            ("tst-u4b36b824policy", None),
            ("tst-uä36b824", None),
            ("tst-u", None),
            ("tst", None),
            ("", None),
        ] {
            assert_eq!(Form::read(name), form, "{name}");
        }
    }
}
