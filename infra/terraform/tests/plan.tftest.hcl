# terraform test: the configuration is planned against a mocked provider, so that no project and no credentials are needed.
# Not yet run where it belongs, in .github/workflows/cluster.yml.

mock_provider "google" {}

variables {
  project      = "my-team-ml"
  alert_emails = ["ml-oncall@example.org"]
}

run "the_defaults_plan" {
  command = plan
}

run "a_zone_outside_the_region_is_refused" {
  command = plan

  variables {
    region = "us-central1"
    zone   = "europe-west4-a"
  }

  expect_failures = [var.zone]
}

run "a_project_that_is_none_is_refused" {
  command = plan

  variables {
    project = "No Project"
  }

  expect_failures = [var.project]
}
