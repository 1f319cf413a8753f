//! What the daemon does: the methods, over a scheduler and an executor.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant, SystemTime};

use palisade_core::{
    ArtifactHash, Error, ErrorKind, HostFunctions, IdempotencyKey, Result, Scheduler, SchedulerMode, Task, TaskId,
    TaskQuery, Tenant, TraceContext,
};
use palisade_fabric::{
    AdmitTask, AgentMemory, AgentState, Drained, EventFilter, Events, Executor, ExecutorOptions, LocalScheduler,
    PrometheusSink, Subscription, admit, narrowed,
};
use serde::de::DeserializeOwned;
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::watch;
use tracing::Instrument;
use tracing::field::Empty;

use crate::methods::for_each_method;
use crate::openrpc::document;
use crate::protocol::codes;
use crate::wire::*;
use crate::{ByKind, Ceiling, EventQuery, METHODS, Plugin, Plugins, RpcError};

/// Tasks, keys or tenants in one list, unless asked for fewer or more, and at most.
const LISTED: (usize, usize) = (100, 1000);

/// How to start a [`Service`].
#[derive(Debug)]
#[non_exhaustive]
pub struct ServiceOptions {
    /// Keeps the tasks.
    pub scheduler: Arc<LocalScheduler>,
    /// Run them.
    pub backends: ByKind,
    /// What is installed.
    pub plugins: Plugins,
    /// Hears all figures.
    pub metrics: Arc<PrometheusSink>,
    /// Where the scheduler tells of what happens; agents tell there as well. Default: a place where only agents do.
    pub events: Events,
    /// Tasks outlive the daemon. Only reported.
    pub durable: bool,
    /// Tasks run at once. Default 256.
    pub tasks_max: usize,
    /// The most that anybody may be given.
    pub ceiling: Ceiling,
}

impl ServiceOptions {
    /// Defaults for everything but what it is made of.
    pub fn new(
        scheduler: Arc<LocalScheduler>,
        backends: ByKind,
        plugins: Plugins,
        metrics: Arc<PrometheusSink>,
    ) -> ServiceOptions {
        let events = Events::default();
        let ceiling = Ceiling::default();
        ServiceOptions { scheduler, backends, plugins, metrics, events, durable: false, tasks_max: 256, ceiling }
    }
}

/// How a service ended.
#[derive(Debug)]
#[non_exhaustive]
pub struct Closed {
    /// All tasks that ran came to their end; otherwise those that had not were given back to the scheduler.
    pub in_time: bool,
    /// Agents whose memory could not be saved, and why.
    pub unsaved: Vec<(String, Error)>,
}

/// The daemon without its sockets.
pub struct Service {
    scheduler: Arc<LocalScheduler>,
    backends: ByKind,
    plugins: Arc<Plugins>,
    metrics: Arc<PrometheusSink>,
    events: Events,
    durable: bool,
    ceiling: Arc<Ceiling>,
    started: Instant,
    /// `None` once it closes. Some of what is done with it waits for the disk, and others use it meanwhile.
    executor: RwLock<Option<Executor>>,
    /// Changes of plugins and their agents happen one after the other, each as a whole.
    changing: tokio::sync::Mutex<()>,
    /// Tells those who wait for tasks that the service is over.
    over: watch::Sender<bool>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("plugins", &self.plugins)
            .field("durable", &self.durable)
            .finish_non_exhaustive()
    }
}

impl Service {
    /// Makes the agents of all plugins, then runs tasks. On the current Tokio runtime.
    ///
    /// # Errors
    ///
    /// Those of [`Executor::start`] and [`Executor::spawn`].
    pub async fn start(options: ServiceOptions) -> Result<Arc<Service>> {
        let ServiceOptions { scheduler, backends, plugins, metrics, events, durable, tasks_max, ceiling } = options;
        // A task that is leased before its agent is there would fail.
        scheduler.set_mode(SchedulerMode::Paused).await?;
        let mut executor = ExecutorOptions::new(Arc::clone(&scheduler) as _, Arc::new(backends.clone()));
        executor.metrics = Arc::clone(&metrics) as _;
        executor.tasks_max = tasks_max;
        executor.events = events.clone();
        let ceiling = Arc::new(ceiling);
        let of_tasks = Arc::clone(&ceiling);
        executor.admit = Some(AdmitTask::new(move |task| of_tasks.admit_task(&task.tenant, &task.policy)));
        let executor = Executor::start(executor)?;
        for plugin in plugins.list() {
            let Some(template) = plugins.template(&plugin) else { continue };
            // What was installed under a higher ceiling: its tasks are held to this one.
            if let (Some(agent), kind) = (&plugin.agent, plugin.artifact.kind())
                && let Err(error) = ceiling.admit_install(kind, &plugin.policy, agent)
            {
                tracing::warn!(plugin = %plugin.artifact.hash(), %error, "a plugin has more than is allowed now");
            }
            executor.spawn(template)?;
        }
        scheduler.set_mode(SchedulerMode::Running).await?;
        Ok(Arc::new(Service {
            scheduler,
            backends,
            plugins: Arc::new(plugins),
            metrics,
            events,
            durable,
            ceiling,
            started: Instant::now(),
            executor: RwLock::new(Some(executor)),
            changing: tokio::sync::Mutex::default(),
            over: watch::Sender::new(false),
        }))
    }

    /// Takes no more tasks, lets those that run end within `grace`, gives the others back, and lets nobody wait any
    /// longer. Questions are answered until the end.
    pub async fn close(&self, grace: Duration) -> Closed {
        // A scheduler that fails takes no tasks either.
        let _ = self.scheduler.set_mode(SchedulerMode::Draining).await;
        let executor = self.executor.write().unwrap_or_else(PoisonError::into_inner).take();
        let closed = match executor {
            Some(executor) => {
                let Drained { in_time, unsaved, .. } = executor.drain(grace).await;
                Closed { in_time, unsaved }
            }
            None => Closed { in_time: true, unsaved: Vec::new() },
        };
        self.over.send_replace(true);
        closed
    }

    /// Metrics in the text format of OpenMetrics.
    ///
    /// # Errors
    ///
    /// Those of [`PrometheusSink::export`].
    pub fn metrics_text(&self) -> Result<String> {
        self.metrics.export()
    }

    /// Hears of events from now on.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Exhausted`] when there are too many subscribers, [`ErrorKind::NotFound`] for an unknown plugin.
    pub fn subscribe(&self, query: EventQuery) -> Result<Subscription> {
        let EventQuery { task, tenant, plugin } = query;
        let plugin = plugin.map(|plugin| self.plugin_hash(&plugin)).transpose()?;
        self.events.subscribe(EventFilter { task, tenant, plugin })
    }

    /// Whether the scheduler can keep what it is given, and its tasks are run.
    ///
    /// # Errors
    ///
    /// Those of [`LocalScheduler::check`] and [`Executor::check`].
    pub fn check(&self) -> Result<()> {
        self.scheduler.check()?;
        match &*self.executor() {
            Some(executor) => executor.check(),
            None => Ok(()),
        }
    }

    /// Whether the service takes tasks.
    pub fn is_open(&self) -> bool {
        self.executor().is_some()
    }

    // It is there or not, whoever panicked meanwhile.
    fn executor(&self) -> RwLockReadGuard<'_, Option<Executor>> {
        self.executor.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_executor<T>(&self, what: impl FnOnce(&Executor) -> Result<T>) -> Result<T> {
        match &*self.executor() {
            Some(executor) => what(executor),
            None => {
                Err(Error::new(ErrorKind::Exhausted, "call", "the daemon ends").with_help("ask again when it is back"))
            }
        }
    }

    /// Does `change` as a whole, also when nobody waits for it any more, on a thread that may block.
    async fn change<T: Send + 'static>(
        self: &Arc<Self>,
        change: impl FnOnce(&Service) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let service = Arc::clone(self);
        let done = tokio::spawn(async move {
            let theirs = Arc::clone(&service);
            let _changing = service.changing.lock().await;
            tokio::task::spawn_blocking(move || change(&theirs)).await
        });
        let lost =
            |error| Error::new(ErrorKind::Internal, "call", "a thread of the daemon was lost").with_source(error);
        done.await.map_err(lost)?.map_err(lost)?
    }

    async fn plugins_install(self: &Arc<Self>, params: InstallPlugin) -> Result<Installed> {
        let InstallPlugin { name, kind, bytes, policy, agent } = params;
        policy.validate()?;
        if agent.tasks_max == 0 {
            return Err(Error::new(ErrorKind::InvalidInput, "install", "an agent that runs 0 tasks would run none"));
        }
        self.ceiling.admit_install(kind, &policy, &agent)?;
        let backend = self.backends.backend(kind)?;
        backend.capabilities().admit(&policy)?;
        let artifact = palisade_core::Artifact::new(kind, bytes.0).named(name);
        // What cannot run is refused here, to the person who installs it, and not later to one who submits a task.
        let module = backend.load(artifact.clone()).await?;
        let functions = AgentMemory::new(agent.memory).add_to(HostFunctions::new());
        let asked = policy.clone();
        // It may build a jail, and ask an interpreter: not on a thread that others wait for.
        let prepared = tokio::task::spawn_blocking(move || module.prepare(asked, functions).map(drop)).await;
        prepared.map_err(|error| {
            Error::new(ErrorKind::Internal, "install", "a thread of the daemon was lost").with_source(error)
        })??;
        let plugin = Plugin::new(artifact, policy, agent);
        self.change(move |service| {
            let hash = plugin.artifact.hash();
            service.with_executor(|_| Ok(()))?;
            let installed = service.plugins.install(plugin)?;
            tracing::info!(plugin = %hash, installed, "a plugin was installed");
            if installed {
                let plugin = service.plugins.find(&hash.to_string())?;
                if let Err(error) = service.spawn_agent(&plugin) {
                    service.plugins.remove(hash)?;
                    return Err(error);
                }
            }
            Ok(Installed { plugin: hash, installed })
        })
        .await
    }

    async fn plugins_list(self: &Arc<Self>, _: Nothing) -> Result<PluginList> {
        Ok(PluginList { plugins: self.plugins.list().iter().map(|plugin| info(plugin)).collect() })
    }

    async fn plugins_remove(self: &Arc<Self>, params: PluginRef) -> Result<PluginInfo> {
        self.change(move |service| {
            let plugin = service.plugins.find(&params.plugin)?;
            match service.with_executor(|executor| executor.remove(&plugin.agent_name())) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            service.plugins.remove(plugin.artifact.hash())?;
            Ok(info(&plugin))
        })
        .await
    }

    async fn tasks_submit(self: &Arc<Self>, params: SubmitTask) -> Result<Submission> {
        let plugin = self.plugins.find(&params.plugin)?;
        if plugin.agent.is_none() {
            let message = format!("the agent of plugin `{}` was terminated", plugin.artifact.name());
            return Err(
                Error::new(ErrorKind::NotFound, "submit", message).with_help("make it anew with `agents.spawn`")
            );
        }
        let mut task = Task::new(plugin.artifact.hash());
        if let Some(id) = params.task {
            if id.0.get_version_num() != 7 {
                let message = format!("task id {id} is no UUID of version 7");
                return Err(Error::new(ErrorKind::InvalidInput, "submit", message).with_help("leave it out to get one"));
            }
            task.id = id;
        }
        task.entry = params.entry.unwrap_or(task.entry);
        task.arguments = params.arguments;
        task.input = params.input.0;
        task.priority = params.priority;
        task.tenant = params.tenant.map_or(task.tenant, Tenant);
        task.policy = match &params.policy {
            Some(asked) => narrowed(asked, &plugin.policy)?,
            None => plugin.policy.clone(),
        };
        self.ceiling.admit_task(&task.tenant, &task.policy)?;
        task.retry = params.retry;
        task.not_before = params.not_before_unix_ms.map(time).transpose()?;
        task.deadline = params.deadline_unix_ms.map(time).transpose()?;
        task.idempotency_key = params.idempotency_key.map(IdempotencyKey);
        task.trace = params.trace;
        task.labels = params.labels;
        admit(&task, self.backends.backend(plugin.artifact.kind())?.capabilities())?;
        let span = tracing::info_span!(
            "submit",
            task_id = %task.id,
            tenant = &*task.tenant.0,
            plugin = %task.plugin,
            trace_id = Empty,
            parent_span_id = Empty,
            span_id = Empty,
        );
        if let Some(trace) = task.trace.as_ref().filter(|_| !span.is_disabled())
            // The end of a new id is random and not 0. One that is malformed is refused by the scheduler.
            && let Some(own) = trace.child(TaskId::new().0.as_u64_pair().1)
        {
            span.record("trace_id", own.trace_id()).record("span_id", own.parent_span_id());
            span.record("parent_span_id", trace.parent_span_id());
            // Its attempts are parts of the submission.
            task.trace = Some(own);
        }
        self.scheduler.submit(task).instrument(span).await
    }

    async fn tasks_get(self: &Arc<Self>, params: TaskRef) -> Result<TaskInfo> {
        self.task(params.task).await
    }

    async fn task(&self, task: TaskId) -> Result<TaskInfo> {
        Ok(TaskInfo::new(&self.scheduler.get(task).await?, true))
    }

    async fn tasks_wait(self: &Arc<Self>, params: WaitTask) -> Result<TaskInfo> {
        let timeout = Duration::from_millis(params.timeout_ms.min(WaitTask::TIMEOUT_MS_MAX));
        let mut over = self.over.subscribe();
        let over = async { over.wait_for(|over| *over).await.map(drop) };
        tokio::select! {
            biased;
            record = self.scheduler.wait(params.task) => Ok(TaskInfo::new(&record?, true)),
            () = tokio::time::sleep(timeout) => self.task(params.task).await,
            _ = over => self.task(params.task).await,
        }
    }

    async fn tasks_list(self: &Arc<Self>, params: ListTasks) -> Result<TaskPage> {
        let query = TaskQuery {
            states: params.states,
            tenant: params.tenant.map(Tenant),
            plugin: params.plugin.map(|plugin| self.plugin_hash(&plugin)).transpose()?,
            before: params.before,
            tasks_max: params.tasks_max.unwrap_or(LISTED.0).min(LISTED.1),
        };
        let page = self.scheduler.list(query).await?;
        Ok(TaskPage { tasks: page.tasks.iter().map(|record| TaskInfo::new(record, false)).collect(), next: page.next })
    }

    /// The plugin a filter means, which need not be installed any more when it is named by its whole hash.
    fn plugin_hash(&self, reference: &str) -> Result<ArtifactHash> {
        reference.parse().or_else(|_| Ok(self.plugins.find(reference)?.artifact.hash()))
    }

    async fn tasks_cancel(self: &Arc<Self>, params: TaskRef) -> Result<TaskStateInfo> {
        Ok(TaskStateInfo { task: params.task, state: self.scheduler.cancel(params.task).await? })
    }

    async fn tasks_dead_letters(self: &Arc<Self>, params: ListDeadLetters) -> Result<TaskList> {
        let tasks_max = params.tasks_max.unwrap_or(LISTED.0).min(LISTED.1);
        let records = self.scheduler.dead_letters(params.after, tasks_max).await?;
        Ok(TaskList { tasks: records.iter().map(|record| TaskInfo::new(record, false)).collect() })
    }

    async fn tasks_requeue(self: &Arc<Self>, params: TaskRef) -> Result<TaskStateInfo> {
        Ok(TaskStateInfo { task: params.task, state: self.scheduler.requeue(params.task).await? })
    }

    async fn agents_spawn(self: &Arc<Self>, params: SpawnAgent) -> Result<AgentInfo> {
        self.change(move |service| {
            let plugin = service.plugins.find(&params.plugin)?;
            if params.agent.tasks_max == 0 {
                return Err(Error::new(ErrorKind::InvalidInput, "spawn", "an agent that runs 0 tasks would run none"));
            }
            service.ceiling.admit_agent(plugin.artifact.kind(), &params.agent)?;
            match service.agent(&plugin) {
                Ok(agent) if agent.state != AgentState::Terminated => {
                    let message = format!("plugin `{}` has its agent", plugin.artifact.name());
                    return Err(
                        Error::new(ErrorKind::InvalidInput, "spawn", message).with_help("terminate that one first")
                    );
                }
                Ok(_) => drop(service.with_executor(|executor| executor.remove(&plugin.agent_name()))?),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            let plugin = service.plugins.set_agent(plugin.artifact.hash(), Some(params.agent))?;
            service.spawn_agent(&plugin)?;
            service.agent(&plugin)
        })
        .await
    }

    async fn agents_list(self: &Arc<Self>, _: Nothing) -> Result<AgentList> {
        let reports = self.with_executor(|executor| Ok(executor.reports()))?;
        Ok(AgentList { agents: reports.into_iter().map(AgentInfo::from).collect() })
    }

    async fn agents_stats(self: &Arc<Self>, params: PluginRef) -> Result<AgentInfo> {
        self.agent(&*self.plugins.find(&params.plugin)?)
    }

    async fn agents_memory(self: &Arc<Self>, params: LookAtMemory) -> Result<MemoryPage> {
        let plugin = self.plugins.find(&params.plugin)?;
        let memory = self.with_executor(|executor| Ok(executor.memory(plugin.artifact.hash())))?;
        let memory = memory.ok_or_else(|| no_agent(&plugin))?;
        if let Some(key) = params.key {
            let value = memory.peek(&key.0).ok_or_else(|| {
                Error::new(ErrorKind::NotFound, "find", "the agent remembers nothing under this key")
                    .with_help("list the keys by leaving it out")
            })?;
            let entry = MemoryEntry { key, value_bytes: value.len(), value: Some(Base64(value)) };
            return Ok(MemoryPage { entries: vec![entry], next: None });
        }
        let entries_max = params.entries_max.unwrap_or(LISTED.0).clamp(1, LISTED.1);
        // One more tells whether there are more.
        let mut found = memory.list(params.after.as_ref().map(|after| &after.0[..]), entries_max + 1);
        let more = found.len() > entries_max;
        found.truncate(entries_max);
        let entry = |(key, value_bytes)| MemoryEntry { key: Base64(key), value_bytes, value: None };
        let entries: Vec<_> = found.into_iter().map(entry).collect();
        let next = entries.last().map(|entry| entry.key.clone()).filter(|_| more);
        Ok(MemoryPage { entries, next })
    }

    async fn agents_terminate(self: &Arc<Self>, params: PluginRef) -> Result<AgentInfo> {
        self.change(move |service| {
            let plugin = service.plugins.find(&params.plugin)?;
            service.agent(&plugin)?;
            service.plugins.set_agent(plugin.artifact.hash(), None)?;
            service.with_executor(|executor| executor.remove(&plugin.agent_name())).map(AgentInfo::from)
        })
        .await
    }

    async fn tenants_set(self: &Arc<Self>, params: SetTenant) -> Result<TenantInfo> {
        self.set_tenant_limits(Tenant(params.tenant), Some(params.limits)).await
    }

    async fn tenants_reset(self: &Arc<Self>, params: TenantRef) -> Result<TenantInfo> {
        self.set_tenant_limits(Tenant(params.tenant), None).await
    }

    async fn set_tenant_limits(self: &Arc<Self>, tenant: Tenant, limits: Option<TenantLimits>) -> Result<TenantInfo> {
        self.scheduler.set_tenant_limits(&tenant, limits).await?;
        tracing::info!(tenant = tenant.0, ?limits, "the limits of a tenant were set");
        Ok(self.scheduler.tenant(&tenant)?.into())
    }

    async fn tenants_list(self: &Arc<Self>, params: ListTenants) -> Result<TenantList> {
        let tenants_max = params.tenants_max.unwrap_or(LISTED.0).clamp(1, LISTED.1);
        // One more tells whether there are more.
        let mut found = self.scheduler.tenants(params.after.map(Tenant).as_ref(), tenants_max + 1);
        let more = found.len() > tenants_max;
        found.truncate(tenants_max);
        let tenants: Vec<_> = found.into_iter().map(TenantInfo::from).collect();
        let next = tenants.last().map(|tenant| tenant.tenant.clone()).filter(|_| more);
        Ok(TenantList { tenants, next })
    }

    async fn health(self: &Arc<Self>, _: Nothing) -> Result<Health> {
        Ok(Health {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            draining: !self.is_open(),
            durable: self.durable,
            journal_error: self.check().err().map(|error| error.to_string()),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            plugins: self.plugins.count(),
            tasks: self.scheduler.stats(),
        })
    }

    async fn metrics(self: &Arc<Self>, _: Nothing) -> Result<Metrics> {
        Ok(Metrics { text: self.metrics_text()? })
    }

    fn spawn_agent(&self, plugin: &Plugin) -> Result<()> {
        let Some(template) = self.plugins.template(plugin) else { return Ok(()) };
        self.with_executor(|executor| executor.spawn(template).map(drop))
    }

    fn agent(&self, plugin: &Plugin) -> Result<AgentInfo> {
        let hash = plugin.artifact.hash();
        let report =
            self.with_executor(|executor| Ok(executor.reports().into_iter().find(|one| one.plugin == hash)))?;
        report.map(AgentInfo::from).ok_or_else(|| no_agent(plugin))
    }
}

fn no_agent(plugin: &Plugin) -> Error {
    Error::new(ErrorKind::NotFound, "find", format!("plugin `{}` has no agent", plugin.artifact.name()))
        .with_help("make one with `agents.spawn`")
}

macro_rules! dispatcher {
    ($($(#[$doc:meta])* $function:ident = $name:literal: $params:ident => $result:ident;)*) => {
        impl Service {
            /// Calls a method with its parameters, an object in JSON. A task that is submitted without a trace belongs to
            /// `trace`.
            ///
            /// # Errors
            ///
            /// With [`codes`]: unknown method, wrong parameters, or the method's own error.
            pub async fn call(
                self: &Arc<Self>,
                method: &str,
                params: &str,
                trace: Option<&TraceContext>,
            ) -> Result<Box<RawValue>, RpcError> {
                match method {
                    "tasks.submit" if trace.is_some() => {
                        let mut params = read::<SubmitTask>(method, params)?;
                        params.trace = params.trace.or_else(|| trace.cloned());
                        write(&Box::pin(self.tasks_submit(params)).await?)
                    }
                    $($name => {
                        let params = read::<$params>($name, params)?;
                        let result: $result = Box::pin(self.$function(params)).await?;
                        write(&result)
                    })*
                    "rpc.discover" => document().map_err(|error| {
                        Error::new(ErrorKind::Internal, "call", "the description is no JSON").with_source(error).into()
                    }),
                    unknown => Err(unknown_method(unknown)),
                }
            }
        }
    };
}
for_each_method!(dispatcher);

fn read<T: DeserializeOwned>(method: &str, params: &str) -> Result<T, RpcError> {
    serde_json::from_str(params).map_err(|error| {
        let data = serde_json::json!({ "method": method, "line": error.line(), "column": error.column() });
        RpcError::new(codes::INVALID_PARAMS, format!("the parameters of {method} are wrong: {error:.300}")).data(data)
    })
}

fn write<T: serde::Serialize>(result: &T) -> Result<Box<RawValue>, RpcError> {
    to_raw_value(result).map_err(|error| {
        Error::new(ErrorKind::Internal, "call", "the result cannot be written as JSON").with_source(error).into()
    })
}

fn unknown_method(name: &str) -> RpcError {
    let known = METHODS.iter().map(|(name, _)| *name);
    let nearest = nearest(name, known.clone());
    let mut message = format!("there is no method `{name:.100}`");
    let data = match nearest {
        Some(nearest) => {
            message += &format!("; did you mean `{nearest}`?");
            serde_json::json!({ "nearest": nearest })
        }
        None => serde_json::json!({ "methods": known.collect::<Vec<_>>() }),
    };
    RpcError::new(codes::METHOD_NOT_FOUND, message).data(data)
}

/// The name nearest to one that nobody knows.
pub(crate) fn nearest<'a>(unknown: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Long ones are no slips of the finger, and would take long.
    let unknown: String = unknown.chars().take(64).collect();
    let rated = names.map(|name| (strsim::jaro_winkler(&unknown, name), name));
    rated.filter(|(likeness, _)| *likeness > 0.8).max_by(|one, other| one.0.total_cmp(&other.0)).map(|(_, name)| name)
}

fn time(unix_ms: u64) -> Result<SystemTime> {
    // Later than any file system or database can say: year 9999.
    const UNIX_MS_MAX: u64 = 253_402_300_799_999;
    if unix_ms > UNIX_MS_MAX {
        let message = format!("{unix_ms} ms since 1970 is no time before the year 10000");
        return Err(Error::new(ErrorKind::InvalidInput, "submit", message));
    }
    Ok(SystemTime::UNIX_EPOCH + Duration::from_millis(unix_ms))
}

fn info(plugin: &Plugin) -> PluginInfo {
    PluginInfo {
        plugin: plugin.artifact.hash(),
        name: plugin.artifact.name().to_owned(),
        kind: plugin.artifact.kind(),
        size_bytes: plugin.artifact.bytes().len() as u64,
        policy: plugin.policy.clone(),
        agent: plugin.agent.clone(),
    }
}
