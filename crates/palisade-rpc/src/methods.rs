//! The table of methods, from which the server's dispatcher and the client are made.

/// Calls the macro `$with` with every method: documentation, function, name, parameters, result.
macro_rules! for_each_method {
    ($with:ident) => {
        $with! {
            /// Installs a plugin and its agent. The same bytes with the same settings again change nothing.
            plugins_install = "plugins.install": InstallPlugin => Installed;
            /// All plugins, sorted by name.
            plugins_list = "plugins.list": Nothing => PluginList;
            /// Removes a plugin and its agent. Tasks that still wait for it will fail.
            plugins_remove = "plugins.remove": PluginRef => PluginInfo;
            /// Takes a task. When this is answered, the task is kept as safely as the daemon keeps tasks.
            tasks_submit = "tasks.submit": SubmitTask => Submission;
            /// What is recorded about a task.
            tasks_get = "tasks.get": TaskRef => TaskInfo;
            /// As `tasks.get`, but waits for the outcome. When the time is over, the task as it is then.
            tasks_wait = "tasks.wait": WaitTask => TaskInfo;
            /// A page of the tasks that are kept, latest first, without what they wrote.
            tasks_list = "tasks.list": ListTasks => TaskPage;
            /// Cancels a task that is queued or running.
            tasks_cancel = "tasks.cancel": TaskRef => TaskStateInfo;
            /// Tasks that were given up after too many attempts, sorted by id, without what they wrote.
            tasks_dead_letters = "tasks.dead_letters": ListDeadLetters => TaskList;
            /// Tries a task of the dead-letter queue again from the beginning.
            tasks_requeue = "tasks.requeue": TaskRef => TaskStateInfo;
            /// Makes the agent of a plugin anew, when it was terminated or has failed too often.
            agents_spawn = "agents.spawn": SpawnAgent => AgentInfo;
            /// All agents, sorted by name.
            agents_list = "agents.list": Nothing => AgentList;
            /// What the agent of a plugin did, and where it is.
            agents_stats = "agents.stats": PluginRef => AgentInfo;
            /// What the agent of a plugin remembers: its keys in their order, or the value of one.
            agents_memory = "agents.memory": LookAtMemory => MemoryPage;
            /// Ends the agent of a plugin: it takes no more tasks, also after a restart of the daemon.
            agents_terminate = "agents.terminate": PluginRef => AgentInfo;
            /// Sets what a tenant may do, also after a restart of the daemon: all its own limits, in place of those it had.
            tenants_set = "tenants.set": SetTenant => TenantInfo;
            /// Lets a tenant have the limits of every tenant again.
            tenants_reset = "tenants.reset": TenantRef => TenantInfo;
            /// A page of the tenants that have limits of their own or tasks without an outcome, sorted by name.
            tenants_list = "tenants.list": ListTenants => TenantList;
            /// Whether the daemon serves, and what it holds.
            health = "health": Nothing => Health;
            /// All metrics in the text format of OpenMetrics.
            metrics = "metrics": Nothing => Metrics;
        }
    };
}
pub(crate) use for_each_method;

macro_rules! table {
    ($(#[doc = $doc:literal] $function:ident = $name:literal: $params:ident => $result:ident;)*) => {
        /// Every method: its name and what it does.
        pub const METHODS: &[(&str, &str)] = &[$(($name, $doc)),*];
    };
}
for_each_method!(table);
