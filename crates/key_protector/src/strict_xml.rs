//! Reading XML from outside: everything unexpected is an error.
//!
//! The readers built on this also write what they have read and compare it with what they were
//! given, so these checks exist for useful messages, and as a second line of defence.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bergshamra_c14n::C14nMode;
use roxmltree::{Document, Node, ParsingOptions};

use crate::error::{Error, Result};

/// Far above what 64 wrappings need, and small enough to cost nothing.
const MAX_NODES: u32 = 8192;

/// Parses `bytes` as XML without a document type definition.
pub(crate) fn parse<'a>(document: &'static str, bytes: &'a [u8], limit: usize) -> Result<Document<'a>> {
    if bytes.len() > limit {
        return Err(Error::TooLarge { document, limit });
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Error::NotUtf8 { document })?;
    let options = ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, ..ParsingOptions::default() };
    Document::parse_with_options(text, options).map_err(|source| Error::Xml { document, source })
}

/// Exclusive XML canonicalisation, without comments, of a whole document of our own making.
pub(crate) fn canonicalize(xml: &str) -> Result<Vec<u8>> {
    bergshamra_c14n::canonicalize::<&str>(xml, C14nMode::Exclusive, None, &[])
        .map_err(|e| Error::Canonicalize { source: e.into() })
}

/// The element's local name, for messages.
pub(crate) fn name(node: Node<'_, '_>) -> String {
    // Names come from outside and end up in messages.
    node.tag_name().name().chars().take(64).collect()
}

pub(crate) fn structure(node: Node<'_, '_>, problem: &'static str) -> Error {
    Error::Structure { element: name(node), problem }
}

/// Requires `node` to be the element `local` in the name space `namespace`.
pub(crate) fn expect(node: Node<'_, '_>, namespace: &str, local: &str) -> Result<()> {
    if !node.is_element() || !node.has_tag_name((namespace, local)) {
        return Err(structure(node, "is not the element that belongs here"));
    }
    Ok(())
}

/// The children of `node`, which must be exactly these elements in this order.
pub(crate) fn children<'a, 'i, const N: usize>(
    node: Node<'a, 'i>,
    namespace: &str,
    names: [&str; N],
) -> Result<[Node<'a, 'i>; N]> {
    let found: Vec<_> = node.children().take(N + 1).collect();
    let found: [Node<'a, 'i>; N] =
        found.try_into().map_err(|_| structure(node, "does not have the children that the schema demands"))?;
    for (child, local) in found.iter().zip(names) {
        expect(*child, namespace, local)?;
    }
    Ok(found)
}

/// The values of `node`'s attributes, which must be exactly these, in this order.
pub(crate) fn attributes<'a, const N: usize>(node: Node<'a, '_>, names: [&str; N]) -> Result<[&'a str; N]> {
    let mut values = [""; N];
    let mut attributes = node.attributes();
    for (value, name) in values.iter_mut().zip(names) {
        match attributes.next() {
            Some(a) if a.namespace().is_none() && a.name() == name => *value = a.value(),
            _ => return Err(structure(node, "lacks an attribute")),
        }
    }
    if attributes.next().is_some() {
        return Err(structure(node, "has an attribute that does not belong here"));
    }
    Ok(values)
}

/// The text of an element that has neither attributes nor child elements.
pub(crate) fn text<'a>(node: Node<'a, '_>) -> Result<&'a str> {
    attributes(node, [])?;
    let mut children = node.children();
    match (children.next(), children.next()) {
        (Some(only), None) if only.is_text() => only.text().ok_or_else(|| structure(node, "has no text content")),
        _ => Err(structure(node, "must contain text and nothing else")),
    }
}

/// The content of a base64 element without line breaks.
pub(crate) fn base64(node: Node<'_, '_>) -> Result<Vec<u8>> {
    BASE64_STANDARD.decode(text(node)?).map_err(|_| Error::Base64 { element: name(node) })
}

/// A decimal number without sign, space or leading zero.
pub(crate) fn number(field: &str, text: &str) -> Result<u32> {
    text.parse::<u32>().ok().filter(|n| n.to_string() == text).ok_or_else(|| Error::Number { field: field.to_owned() })
}
