//! Keeps what is traced, for tests to look at.
#![allow(dead_code, reason = "each test uses its part")]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

pub(crate) type Fields = BTreeMap<&'static str, String>;

/// Keeps every span with its fields, by their ids in order.
#[derive(Clone, Default)]
pub(crate) struct Recorder(Arc<Mutex<BTreeMap<u64, (&'static str, Fields)>>>);

struct Taken<'a>(&'a mut Fields);

impl Visit for Taken<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        let mut fields = Fields::new();
        attributes.record(&mut Taken(&mut fields));
        self.0.lock().unwrap().insert(id.into_u64(), (attributes.metadata().name(), fields));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        let mut spans = self.0.lock().unwrap();
        values.record(&mut Taken(&mut spans.get_mut(&id.into_u64()).unwrap().1));
    }
}

impl Recorder {
    /// The fields of each span of this name, in the order they were opened.
    pub(crate) fn spans(&self, name: &str) -> Vec<Fields> {
        self.0.lock().unwrap().values().filter(|span| span.0 == name).map(|span| span.1.clone()).collect()
    }

    /// Forgets them.
    pub(crate) fn clear(&self) {
        self.0.lock().unwrap().clear();
    }
}
