//! The description of the interface for other languages' tools: an OpenRPC document, made from the code by a test.

use serde_json::value::RawValue;

/// The document, as it is checked in.
pub const OPENRPC: &str = include_str!("../openrpc.json");

/// The document as the result of `rpc.discover`.
pub(crate) fn document() -> serde_json::Result<Box<RawValue>> {
    serde_json::from_str(OPENRPC)
}

#[cfg(all(test, feature = "schema"))]
mod tests {
    use std::borrow::Cow;
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use palisade_core::Sandbox;
    use palisade_fabric::{LocalScheduler, PrometheusSink, SchedulerOptions};
    use palisade_fake::Fake;
    use schemars::generate::SchemaSettings;
    use schemars::transform::{Transform, transform_subschemas};
    use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
    use serde_json::{Value, json};

    use super::*;
    use crate::methods::for_each_method;
    use crate::wire::*;
    use crate::{ByKind, Event, Plugins, Service, ServiceOptions, codes};

    impl JsonSchema for Base64 {
        fn schema_name() -> Cow<'static, str> {
            "Base64".into()
        }

        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            json_schema!({ "description": "Bytes as base64 with padding", "type": "string", "contentEncoding": "base64" })
        }
    }

    /// Where the definitions of schemas lie in an OpenRPC document.
    const DEFINITIONS: &str = "/components/schemas";

    /// A method, its text, parameters and result.
    struct Described {
        name: &'static str,
        text: &'static str,
        params: Schema,
        result: Schema,
    }

    macro_rules! described {
        ($(#[doc = $doc:literal] $function:ident = $name:literal: $params:ident => $result:ident;)*) => {
            fn described(generator: &mut SchemaGenerator) -> Vec<Described> {
                vec![$(Described {
                    name: $name,
                    text: $doc.trim(),
                    params: <$params>::json_schema(generator),
                    result: generator.subschema_for::<$result>(),
                }),*]
            }
        };
    }
    for_each_method!(described);

    /// Leaves out what only Rust knows: names of numbers such as `uint64`, whose bounds say the same, and examples.
    #[derive(Clone)]
    struct Plain;

    impl Transform for Plain {
        fn transform(&mut self, schema: &mut Schema) {
            if schema.get("type").is_none_or(|kind| kind != "string") {
                schema.remove("format");
            }
            if let Some(Value::String(text)) = schema.get_mut("description")
                && let Some(example) = text.find("\n\n```")
            {
                text.truncate(example);
            }
            transform_subschemas(self, schema);
        }
    }

    /// The document that describes the code as it is.
    fn generate() -> Value {
        let mut settings = SchemaSettings::draft07().with_transform(Plain);
        settings.definitions_path = DEFINITIONS.into();
        settings.meta_schema = None;
        let mut generator = settings.into_generator();
        let methods: Vec<_> = described(&mut generator).into_iter().map(|method| described_method(&method)).collect();
        let event = generator.subschema_for::<Event>();
        let mut schemas = generator.take_definitions(true);
        for schema in schemas.values_mut() {
            Plain.transform(schema.try_into().unwrap());
        }
        let kinds = codes::KINDS.iter().map(|(kind, code)| json!({ "code": code, "message": json!(kind) }));
        json!({
            "openrpc": "1.3.2",
            "info": {
                "title": "Palisade",
                "version": env!("CARGO_PKG_VERSION"),
                "description": "The daemon's interface: JSON-RPC 2.0 as the body of `POST /rpc`. `GET /events` tells \
                    each event, of the schema `Event`, as a server-sent event.",
                "license": { "name": env!("CARGO_PKG_LICENSE") },
            },
            "methods": methods,
            "components": { "schemas": schemas, "errors": kinds.map(|error| {
                (error["message"].as_str().unwrap().to_owned(), error.clone())
            }).collect::<serde_json::Map<_, _>>() },
            "x-events": event,
        })
    }

    fn described_method(method: &Described) -> Value {
        let params = method.params.as_value();
        let required = |name: &str| params["required"].as_array().is_some_and(|all| all.iter().any(|one| one == name));
        let properties = params["properties"].as_object().into_iter().flatten();
        let param = |(name, schema): (&String, &Value)| {
            let mut schema = schema.clone();
            let description = schema.as_object_mut().and_then(|schema| schema.remove("description"));
            let mut param = json!({ "name": name, "required": required(name), "schema": schema });
            if let Some(description) = description {
                param["description"] = description;
            }
            param
        };
        json!({
            "name": method.name,
            "summary": method.text,
            "paramStructure": "by-name",
            "params": properties.map(param).collect::<Vec<_>>(),
            "result": { "name": "result", "schema": method.result },
        })
    }

    #[test]
    fn the_document_describes_the_code() {
        let text = serde_json::to_string_pretty(&generate()).unwrap() + "\n";
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openrpc.json");
        if std::env::var_os("PALISADE_UPDATE").is_some() {
            fs::write(&path, &text).unwrap();
        }
        let kept = fs::read_to_string(&path).unwrap();
        assert!(
            kept == text,
            "openrpc.json is stale: PALISADE_UPDATE=1 cargo test -p palisade-rpc --features schema --lib openrpc"
        );
        assert_eq!(
            serde_json::from_str::<Value>(OPENRPC).unwrap()["methods"].as_array().unwrap().len(),
            crate::METHODS.len()
        );
    }

    /// A validator of what the document says of one method.
    struct Said {
        params: jsonschema::Validator,
        result: jsonschema::Validator,
    }

    fn said(document: &Value, name: &str) -> Said {
        let method = document["methods"].as_array().unwrap().iter().find(|method| method["name"] == name);
        let method = method.unwrap_or_else(|| panic!("{name} is not described"));
        let validator = |schema: &Value| {
            let whole = json!({ "allOf": [schema], "components": document["components"] });
            jsonschema::draft7::new(&whole).unwrap()
        };
        let (mut properties, mut required) = (serde_json::Map::new(), Vec::new());
        for param in method["params"].as_array().unwrap() {
            properties.insert(param["name"].as_str().unwrap().to_owned(), param["schema"].clone());
            if param["required"] == true {
                required.push(param["name"].clone());
            }
        }
        let params = json!({
            "type": "object", "properties": properties, "required": required, "additionalProperties": false,
        });
        Said { params: validator(&params), result: validator(&method["result"]["schema"]) }
    }

    #[tokio::test]
    async fn real_requests_and_answers_are_as_described() {
        let document: Value = serde_json::from_str(OPENRPC).unwrap();
        let scheduler = Arc::new(LocalScheduler::open(SchedulerOptions::default()).unwrap());
        let backends = ByKind::new([Arc::new(Fake::new(None)) as Arc<dyn Sandbox>]).unwrap();
        let options = ServiceOptions::new(scheduler, backends, Plugins::in_memory(), Arc::new(PrometheusSink::new()));
        let service = Service::start(options).await.unwrap();
        let mut called = BTreeSet::new();
        let mut call = async |name: &'static str, params: Value| -> Value {
            let said = said(&document, name);
            let error = said.params.validate(&params).err().map(|error| error.to_string());
            assert_eq!(error, None, "{name} takes {params:#}");
            let answer =
                service.call(name, &params.to_string(), None).await.unwrap_or_else(|error| panic!("{name}: {error}"));
            let result: Value = serde_json::from_str(answer.get()).unwrap();
            let error = said.result.validate(&result).err().map(|error| format!("{}: {error}", error.instance_path));
            assert_eq!(error, None, "{name} gives {result:#}");
            // What is described is not just anything.
            assert!(!said.params.is_valid(&json!({ "no such parameter": 1 })), "{name}");
            for field in result.as_object().unwrap().keys() {
                let mut wrong = result.clone();
                wrong[field] = json!({ "no": ["such", "thing"] });
                assert!(!said.result.is_valid(&wrong), "{name}: {field} may be anything");
            }
            called.insert(name);
            result
        };
        // A probe of the reference backend, by its name in a custom section.
        let probe = |verb: &str| {
            let custom = [&[0, verb.len() as u8 + 1, verb.len() as u8][..], verb.as_bytes()].concat();
            json!(Base64([&b"\0asm\x01\0\0\0"[..], &custom].concat().into()))
        };
        let policy = json!({
            "quota": { "wall_time": "10s", "fuel": "unlimited", "memory_bytes": "64MiB", "host_calls": 7 },
            "grants": { "host_functions": ["kv.set"], "clocks": "fine", "randomness": { "seeded": 7 } },
        });
        for (verb, policy) in [("echo", json!({})), ("sleep", policy)] {
            let plugin = json!({
                "name": verb, "kind": "wasm", "bytes": probe(verb), "policy": policy,
                "agent": { "instances": "fresh", "tasks_max": 2, "memory": { "eviction": "least_recently_used" } },
            });
            call("plugins.install", plugin).await;
        }
        call("plugins.list", json!({})).await;
        let submit = json!({
            "plugin": "echo", "entry": "_start", "input": "AAE=", "priority": "high", "tenant": "a",
            "retry": { "attempts_max": 1, "backoff_initial": "10ms" }, "idempotency_key": "k",
            "labels": { "a": "b" }, "deadline_unix_ms": unix_ms(SystemTime::now()) + 60_000,
            "trace": { "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=b" },
        });
        let echo = call("tasks.submit", submit).await["task"].clone();
        let ended = call("tasks.wait", json!({ "task": echo, "timeout_ms": 30_000 })).await;
        assert!(ended["execution"]["usage"].is_object(), "{ended:#}");
        let over = json!({
            "plugin": "sleep", "input": "/////////38=", "policy": { "quota": { "wall_time": "20ms" } }, "retry": { "attempts_max": 1 },
        });
        let sleep = call("tasks.submit", over).await["task"].clone();
        let ended = call("tasks.wait", json!({ "task": sleep })).await;
        assert_eq!(ended["execution"]["outcome"]["kind"], "quota_exceeded", "{ended:#}");
        call("tasks.get", json!({ "task": sleep })).await;
        let listed = call("tasks.list", json!({ "states": ["completed", "dead_lettered"], "tasks_max": 10 })).await;
        assert_eq!(listed["tasks"].as_array().unwrap().len(), 2, "{listed:#}");
        call("tasks.dead_letters", json!({ "tasks_max": 10 })).await;
        call("tasks.requeue", json!({ "task": sleep })).await;
        call("tasks.cancel", json!({ "task": sleep })).await;
        call("agents.list", json!({})).await;
        call("agents.stats", json!({ "plugin": "echo" })).await;
        call("agents.memory", json!({ "plugin": "echo", "after": "AA==", "entries_max": 3 })).await;
        call("agents.terminate", json!({ "plugin": "echo" })).await;
        call("agents.spawn", json!({ "plugin": "echo", "agent": { "restarts": { "failures_max": 1 } } })).await;
        let limits =
            json!({ "weight": 3, "running_max": 2, "tasks_max": 9, "submit_rate": { "per_second": 0.5, "burst": 4 } });
        call("tenants.set", json!({ "tenant": "a", "limits": limits })).await;
        let listed = call("tenants.list", json!({ "after": "Z", "tenants_max": 10 })).await;
        assert_eq!(listed["tenants"][0]["own_limits"], limits, "{listed:#}");
        call("tenants.reset", json!({ "tenant": "a" })).await;
        call("health", json!({})).await;
        call("metrics", json!({})).await;
        call("plugins.remove", json!({ "plugin": "echo" })).await;
        let all: BTreeSet<_> = crate::METHODS.iter().map(|(name, _)| *name).collect();
        assert_eq!(called, all, "each method is tried");
        let discovered = service.call("rpc.discover", "{}", None).await.unwrap();
        assert_eq!(serde_json::from_str::<Value>(discovered.get()).unwrap(), document);
        service.close(Duration::ZERO).await;
    }
}
