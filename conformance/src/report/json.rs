//! `report.json`, from which everything else follows.

use super::Report;

impl Report {
    /// The JSON text.
    pub fn to_json(&self) -> String {
        // Text and numbers always have a JSON form.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Reads a JSON text.
    ///
    /// # Errors
    ///
    /// What is wrong with it, for people.
    pub fn from_json(text: &str) -> Result<Report, String> {
        let report: Report =
            serde_json::from_str(text).map_err(|error| format!("the report is unreadable: {error}"))?;
        match report.schema.as_str() {
            super::SCHEMA => Ok(report),
            other => Err(format!("the report has the form `{other}`; this suite knows `{}`", super::SCHEMA)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::*;

    #[test]
    fn reports_round_trip() {
        let report = report();
        assert_eq!(Report::from_json(&report.to_json()).unwrap(), report);
        assert!(report.to_json().contains(r#""schema": "palisade-conformance-report/1""#));
        let other = report.to_json().replace("report/1", "report/2");
        assert!(Report::from_json(&other).unwrap_err().contains("report/2"));
        assert!(Report::from_json("{}").is_err());
    }
}
