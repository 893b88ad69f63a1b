//! XML as AWS writes it: a small tree read from bytes, and text escaped for a body.
//!
//! Not here: what any document means, attributes, namespaces (names are compared without prefix).
//!
//! Invariants
//! - No input makes [`read`] panic; depth and number of elements are bounded, size by the caller.
//! - A document type declaration or an entity of its own is refused, so nothing expands.
//! - What is returned was well-formed: one root, every tag closed by its own name.
//!
//! Sources: XML 1.0, fifth edition; S3 and IAM API References, "Common Errors".

use std::time::SystemTime;

use jiff::Timestamp;
use quick_xml::Reader;
use quick_xml::events::{BytesRef, Event};

/// How deep elements may nest. The deepest AWS answer read here has six levels.
const DEPTH_MAX: usize = 32;
/// How many elements a document may have: a page of 1,000 versions has some 10,000.
const ELEMENTS_MAX: usize = 200_000;

/// Why a text is not accepted; where exactly does not matter to anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum XmlError {
    /// Not UTF-8, not well-formed, or cut off.
    Broken,
    /// Has a document type declaration or an entity of its own.
    Forbidden,
    /// Deeper or longer than any answer of AWS.
    TooBig,
}

impl XmlError {
    /// The error in words.
    pub(super) fn words(self) -> &'static str {
        match self {
            XmlError::Broken => "the answer is no or broken XML",
            XmlError::Forbidden => "the answer's XML declares a type or an entity",
            XmlError::TooBig => "the answer's XML is too deep or too long",
        }
    }
}

/// An element: its name without prefix, its text, its children in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Element {
    /// The name, without namespace prefix.
    pub(super) name: String,
    /// All text directly inside, unescaped, white space kept.
    pub(super) text: String,
    /// The elements directly inside.
    children: Vec<Element>,
}

impl Element {
    /// The children called `name`.
    pub(super) fn children<'e>(&'e self, name: &'e str) -> impl Iterator<Item = &'e Element> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The first child called `name`, taken out.
    pub(super) fn into_child(self, name: &str) -> Option<Element> {
        self.children.into_iter().find(|child| child.name == name)
    }

    /// The element at the end of `path`, taking the first of each name.
    pub(super) fn find(&self, path: &[&str]) -> Option<&Element> {
        path.iter().try_fold(self, |element, name| element.children.iter().find(|it| it.name == *name))
    }

    /// The text at the end of `path`.
    pub(super) fn find_text(&self, path: &[&str]) -> Option<&str> {
        self.find(path).map(|element| element.text.as_str())
    }

    /// Whether the text at the end of `path` is `true`.
    pub(super) fn is_true(&self, path: &[&str]) -> bool {
        self.find_text(path).is_some_and(|text| text.trim() == "true")
    }
}

/// Elements that were opened and not yet closed, and the root once it is.
#[derive(Default)]
struct Builder {
    /// The open elements, outermost first.
    open: Vec<Element>,
    /// The finished root.
    root: Option<Element>,
    /// Elements seen so far.
    elements: usize,
}

impl Builder {
    /// Takes an opening tag.
    fn open(&mut self, name: &str) -> Result<(), XmlError> {
        self.elements += 1;
        if self.open.len() >= DEPTH_MAX || self.elements > ELEMENTS_MAX {
            return Err(XmlError::TooBig);
        }
        if self.root.is_some() {
            return Err(XmlError::Broken);
        }
        self.open.push(Element { name: name.to_owned(), ..Element::default() });
        Ok(())
    }

    /// Takes a closing tag; the reader has compared its name.
    fn close(&mut self) -> Result<(), XmlError> {
        let element = self.open.pop().ok_or(XmlError::Broken)?;
        match self.open.last_mut() {
            Some(parent) => parent.children.push(element),
            None => self.root = Some(element),
        }
        Ok(())
    }

    /// Takes text. Outside of the root only white space may stand.
    fn text(&mut self, text: &str) -> Result<(), XmlError> {
        match self.open.last_mut() {
            Some(element) => element.text.push_str(text),
            None if text.trim().is_empty() => {}
            None => return Err(XmlError::Broken),
        }
        Ok(())
    }
}

/// Reads a document and returns its root.
pub(super) fn read(bytes: &[u8]) -> Result<Element, XmlError> {
    let text = std::str::from_utf8(bytes).map_err(|_| XmlError::Broken)?;
    let mut reader = Reader::from_str(text.trim_start_matches('\u{feff}'));
    let mut builder = Builder::default();
    loop {
        match reader.read_event().map_err(|_| XmlError::Broken)? {
            Event::Start(tag) => builder.open(tag.local_name().into_inner())?,
            Event::Empty(tag) => {
                builder.open(tag.local_name().into_inner())?;
                builder.close()?;
            }
            Event::End(_) => builder.close()?,
            Event::Text(text) => builder.text(&text.xml10_content())?,
            Event::CData(text) => builder.text(&text.xml10_content())?,
            Event::GeneralRef(reference) => {
                let mut buffer = [0; 4];
                builder.text(resolve(&reference)?.encode_utf8(&mut buffer))?;
            }
            Event::DocType(_) => return Err(XmlError::Forbidden),
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            Event::Eof => break,
        }
    }
    match builder.root {
        Some(root) if builder.open.is_empty() => Ok(root),
        _ => Err(XmlError::Broken),
    }
}

/// The character behind `&…;`: one of the five that XML defines, or a number.
fn resolve(reference: &BytesRef<'_>) -> Result<char, XmlError> {
    if let Some(character) = reference.resolve_char_ref().map_err(|_| XmlError::Broken)? {
        return Ok(character);
    }
    match reference.as_ref() {
        "lt" => Ok('<'),
        "gt" => Ok('>'),
        "amp" => Ok('&'),
        "apos" => Ok('\''),
        "quot" => Ok('"'),
        _ => Err(XmlError::Forbidden),
    }
}

/// A moment as AWS writes it (ISO 8601); `None` where there is none that can be read.
pub(super) fn read_time(text: Option<&str>) -> Option<SystemTime> {
    text?.trim().parse::<Timestamp>().ok().map(SystemTime::from)
}

/// Tags below `list`, each in an element called `name`.
pub(super) fn read_tags(list: Option<&Element>, name: &str) -> Vec<(String, String)> {
    let text = |tag: &Element, part| tag.find_text(&[part]).unwrap_or_default().to_owned();
    let tags = list.into_iter().flat_map(|list| list.children(name));
    tags.map(|tag| (text(tag, "Key"), text(tag, "Value"))).collect()
}

/// Whether XML can hold `text` at all. It has no way to write most control characters, not as numbers either.
pub(super) fn can_hold(text: &str) -> bool {
    let allowed = |it: char| match it {
        '\t' | '\n' | '\r' => true,
        '\u{fffe}' | '\u{ffff}' => false,
        it => it >= ' ',
    };
    text.chars().all(allowed)
}

/// `text` as the content of an element.
///
/// Control characters become numbers: a parser would else turn CR into LF, and S3 would delete another
/// key than the one that was listed.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            it if it.is_control() || it == '\u{2028}' => {
                escaped.push_str(&format!("&#{};", u32::from(it)));
            }
            it => escaped.push(it),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = "\u{feff}<?xml version=\"1.0\"?>\n<x:Result xmlns:x=\"urn:y\"><!-- no -->\
        <IsTruncated>true</IsTruncated><Empty/><List><member>a&amp;b&#13;&#x41;</member>\
        <member><![CDATA[<c>]]></member></List></x:Result>\n";

    #[test]
    fn an_answer_becomes_a_tree() {
        let root = read(ANSWER.as_bytes()).unwrap();
        assert_eq!(root.name, "Result");
        assert!(root.is_true(&["IsTruncated"]));
        assert_eq!(root.find_text(&["Empty"]), Some(""));
        assert_eq!(root.find_text(&["List", "nothing"]), None);
        let list = root.find(&["List"]).unwrap();
        let members: Vec<&str> = list.children("member").map(|it| it.text.as_str()).collect();
        assert_eq!(members, ["a&b\rA", "<c>"]);
    }

    #[test]
    fn what_aws_never_sends_is_refused() {
        let deep = "<a>".repeat(DEPTH_MAX + 1);
        let long = format!("<a>{}</a>", "<b/>".repeat(ELEMENTS_MAX));
        let cases: [(&[u8], XmlError); 16] = [
            (b"", XmlError::Broken),
            (b"plain text", XmlError::Broken),
            (b"<a>", XmlError::Broken),
            (b"<a></b>", XmlError::Broken),
            (b"</a>", XmlError::Broken),
            (b"<a/><b/>", XmlError::Broken),
            (b"<a/>text", XmlError::Broken),
            (b"<a>&#0;</a>", XmlError::Broken),
            (b"<a>&#xD800;</a>", XmlError::Broken),
            (b"<a>\xff</a>", XmlError::Broken),
            (b"<html><br><p>502</html>", XmlError::Broken),
            (b"<a>&own;</a>", XmlError::Forbidden),
            (b"<!DOCTYPE a [<!ENTITY own \"x\">]><a>&own;</a>", XmlError::Forbidden),
            (b"<!DOCTYPE html><html></html>", XmlError::Forbidden),
            (deep.as_bytes(), XmlError::TooBig),
            (long.as_bytes(), XmlError::TooBig),
        ];
        for (text, error) in cases {
            let shown = String::from_utf8_lossy(&text[..text.len().min(60)]);
            assert_eq!(read(text).unwrap_err(), error, "{shown}");
        }
    }

    #[test]
    fn escaped_text_comes_back_as_it_was() {
        for text in ["", "a&b<c>\"d'", "\r\n\t\u{1}\u{7f}\u{85}\u{2028}", "ü 日本 😀", "&amp;"] {
            let body = format!("<a>{}</a>", escape(text));
            assert!(!body.contains(['\r', '\n', '\u{1}']), "{body:?}");
            assert_eq!(read(body.as_bytes()).unwrap().text, text);
        }
        assert_eq!(escape("a\r\nb"), "a&#13;&#10;b");
        for (text, expected) in
            [("a\t\r\n\u{7f}ü😀", true), ("\u{1}", false), ("\0", false), ("\u{ffff}", false)]
        {
            assert_eq!(can_hold(text), expected, "{text:?}");
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic() {
        let mut state: u64 = 0x5eed_5eed_5eed_5eed; // xorshift; the same rounds every time
        let mut next = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % u64::try_from(below).unwrap()).unwrap()
        };
        const PIECES: &[&[u8]] = &[
            b"<",
            b">",
            b"/",
            b"&",
            b"&#",
            b";",
            b"]]>",
            b"<![CDATA[",
            b"<!--",
            b"<?",
            b"\xc3",
            b"\0",
            b"x:",
        ];
        for _ in 0..4_000 {
            let mut bytes = ANSWER.as_bytes().to_vec();
            for _ in 0..=next(6) {
                let at = next(bytes.len());
                match next(4) {
                    0 => bytes[at] = u8::try_from(next(256)).unwrap(),
                    1 => drop(bytes.drain(at..(at + 1 + next(20)).min(bytes.len()))),
                    2 => drop(bytes.splice(at..at, PIECES[next(PIECES.len())].iter().copied())),
                    _ => bytes.truncate(at.max(1)),
                }
                if bytes.is_empty() {
                    bytes.push(b'<');
                }
            }
            if let Ok(root) = read(&bytes)
                && !root.text.contains('\0')
            // which no XML can hold
            {
                assert!(read(format!("<a>{}</a>", escape(&root.text)).as_bytes()).is_ok());
            }
        }
    }
}
