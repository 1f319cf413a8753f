//! Which checks run.

use crate::{Catalog, Check};

/// Which checks run; by default all. Anything less certifies nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    /// Only checks of this profile.
    pub profile: Option<String>,
    /// Only checks with one of these in their id.
    pub filters: Vec<String>,
    /// Only checks with none of these in their id.
    pub skips: Vec<String>,
    /// Filters are whole ids.
    pub exact: bool,
}

impl Selection {
    /// The checks of `catalog` that run.
    pub fn choose<C>(&self, catalog: &Catalog<C>) -> Vec<&'static Check<C>> {
        let matches = |id: &str, filter: &String| if self.exact { id == filter } else { id.contains(filter.as_str()) };
        let chosen = |check: &&&'static Check<C>| {
            self.profile.as_ref().is_none_or(|profile| check.profile() == profile)
                && (self.filters.is_empty() || self.filters.iter().any(|filter| matches(check.id, filter)))
                && !self.skips.iter().any(|skip| matches(check.id, skip))
        };
        catalog.checks.iter().filter(chosen).copied().collect()
    }

    /// What was chosen, for people; `None` when it is everything.
    pub fn description(&self) -> Option<String> {
        let quoted = |list: &[String]| list.iter().map(|text| format!("`{text}`")).collect::<Vec<_>>().join(" or ");
        let mut parts = Vec::new();
        if let Some(profile) = &self.profile {
            parts.push(format!("profile `{profile}`"));
        }
        if !self.filters.is_empty() {
            parts.push(format!("checks that match {}", quoted(&self.filters)));
        }
        if !self.skips.is_empty() {
            parts.push(format!("not those that match {}", quoted(&self.skips)));
        }
        (!parts.is_empty()).then(|| parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::catalog;

    #[test]
    fn what_is_chosen_is_described() {
        let ids = |selection: &Selection| {
            selection.choose(&catalog()).iter().map(|check| check.id).collect::<Vec<_>>().join(" ")
        };
        let mut selection = Selection::default();
        assert_eq!((selection.choose(&catalog()).len(), selection.description()), (4, None));
        selection.profile = Some("quota".into());
        selection.skips = vec!["hints".into()];
        assert_eq!(ids(&selection), "quota.memory.grow quota.processes.fork");
        assert_eq!(selection.description().unwrap(), "profile `quota`, not those that match `hints`");
        selection = Selection { filters: vec!["quota.memory".into()], exact: true, ..Selection::default() };
        assert_eq!(ids(&selection), "");
        selection.filters = vec!["quota.memory.grow".into()];
        assert_eq!(ids(&selection), "quota.memory.grow");
        assert_eq!(selection.description().unwrap(), "checks that match `quota.memory.grow`");
    }
}
