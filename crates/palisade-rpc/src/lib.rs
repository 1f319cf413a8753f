//! The daemon's interface: JSON-RPC 2.0 over HTTP, on a Unix socket or on TCP with a token.
//!
//! * [`Service`] is what the daemon does: plugins, tasks, agents. [`METHODS`] lists its methods.
//! * [`Server`] brings requests to it, each within [`Limits`].
//! * [`Client`] calls it, with the same types.
//!
//! A request is the body of a `POST` to `/rpc`: one call or a batch. Parameters are given by name. Bytes are base64,
//! times are milliseconds since 1970, durations and sizes in policies are written as people do (`"2s"`, `"64MiB"`).
//! `GET /healthz` says whether the daemon serves, `GET /metrics` gives its metrics, and `GET /events` stays open and
//! tells each [`Event`] as a server-sent event, one JSON object each; `?task=…`, `?tenant=…` and `?plugin=…` filter.
//! [`OPENRPC`] describes the methods for other languages' tools; `rpc.discover` gives it.
#![forbid(unsafe_code)]

mod ceiling;
mod client;
mod events;
mod kinds;
mod limits;
mod listener;
mod methods;
mod openrpc;
mod patience;
mod plugins;
mod protocol;
mod server;
mod service;
mod shares;
mod token;
mod wire;

pub use ceiling::Ceiling;
pub use client::{Address, Client};
pub use events::{EventQuery, EventStream};
pub use kinds::ByKind;
pub use limits::Limits;
pub use listener::Listener;
pub use methods::METHODS;
pub use openrpc::OPENRPC;
pub use palisade_fabric::{About, AgentState, Event};
pub use plugins::{AgentSettings, Plugin, Plugins};
pub use protocol::{RpcError, codes};
pub use server::Server;
pub use service::{Closed, Service, ServiceOptions};
pub use token::Token;
pub use wire::*;
