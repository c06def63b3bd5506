# Mail when a run fails, and when money runs away.

resource "google_monitoring_notification_channel" "this" {
  for_each = toset(var.alert_emails)

  display_name = "${var.name}: ${each.value}"
  type         = "email"
  labels = {
    email_address = each.value
  }

  depends_on = [google_project_service.this]
}

resource "google_monitoring_alert_policy" "failed_run" {
  for_each = local.failures

  display_name          = "${var.name}: ${each.value.title}"
  combiner              = "OR"
  severity              = "ERROR"
  notification_channels = [for channel in google_monitoring_notification_channel.this : channel.id]

  conditions {
    display_name = each.value.title

    condition_matched_log {
      filter = each.value.filter
    }
  }

  # A policy on log lines needs a rate limit; without one every retry would send mail.
  alert_strategy {
    auto_close = "${3 * 24 * 3600}s"

    notification_rate_limit {
      period = "300s"
    }
  }

  documentation {
    subject   = "xlnet-pipeline: ${each.value.title}"
    mime_type = "text/markdown"
    content   = each.value.remedy
  }
}

resource "google_billing_budget" "this" {
  count = var.billing_account == null ? 0 : 1

  billing_account = var.billing_account
  display_name    = var.name

  budget_filter {
    projects        = ["projects/${data.google_project.this.number}"]
    calendar_period = "MONTH"
  }

  amount {
    specified_amount {
      currency_code = var.currency
      units         = tostring(var.monthly_budget)
    }
  }

  dynamic "threshold_rules" {
    for_each = { half = [0.5, "CURRENT_SPEND"], most = [0.9, "CURRENT_SPEND"], all = [1.0, "CURRENT_SPEND"], soon = [1.0, "FORECASTED_SPEND"] }
    content {
      threshold_percent = threshold_rules.value[0]
      spend_basis       = threshold_rules.value[1]
    }
  }

  all_updates_rule {
    monitoring_notification_channels = [for channel in google_monitoring_notification_channel.this : channel.id]
    disable_default_iam_recipients   = false
  }
}

locals {
  failures = merge(
    var.vertex ? {
      vertex = {
        title  = "a run failed on Vertex AI"
        filter = "resource.type=\"aiplatform.googleapis.com/PipelineJob\" AND jsonPayload.state=\"PIPELINE_STATE_FAILED\""
        remedy = "See which step and why: `xlnet-pipeline runs list`, then `xlnet-pipeline runs logs RUN`."
      }
    } : {},
    var.cluster ? {
      cluster = {
        title  = "a step failed in the cluster"
        filter = "resource.type=\"k8s_container\" AND resource.labels.namespace_name=\"${split("/", var.kubernetes_service_accounts[0])[0]}\" AND resource.labels.container_name=\"main\" AND severity>=ERROR AND textPayload=~\"^xlnet\\.errors\\.\""
        remedy = "See which step and why: `xlnet-pipeline runs list`, then `xlnet-pipeline runs logs RUN`."
      }
    } : {},
  )
}
