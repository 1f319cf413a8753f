//! JSON schemas of what is not written as its type says, for those who describe an interface.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::ArtifactHash;

macro_rules! schema {
    ($(#[doc = $doc:literal] $type:ident = $schema:tt;)*) => {
        $(
            #[doc = $doc]
            #[allow(dead_code, reason = "a name for a schema")]
            pub(crate) struct $type;

            impl JsonSchema for $type {
                fn inline_schema() -> bool {
                    true
                }

                fn schema_name() -> Cow<'static, str> {
                    stringify!($type).into()
                }

                fn json_schema(_: &mut SchemaGenerator) -> Schema {
                    json_schema!($schema)
                }
            }
        )*
    };
}

schema! {
    /// A bound as people write it: `"64MiB"`, `"2s"`, `"10k"`, a plain number, or `"unlimited"`.
    Quantity = { "type": ["string", "integer"], "minimum": 0 };
    /// A duration as people write it.
    Span = { "type": "string", "pattern": "^[0-9]" };
    /// A UUID.
    Id = { "type": "string", "format": "uuid", "pattern": "^[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}$" };
}

impl JsonSchema for ArtifactHash {
    fn schema_name() -> Cow<'static, str> {
        "ArtifactHash".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "description": "SHA-256 of an artifact's bytes", "type": "string", "pattern": "^[0-9a-fA-F]{64}$" })
    }
}
