"""What the API takes as a JobSet: its own fields as version 0.6 has them, and Kubernetes' schema for the Job inside."""

import re
from typing import Any

import kubernetes_validate

from servers.web import Refused

KNOWN = {  # the fields of version 0.6, which is the oldest that is asked for
    "": {"apiVersion", "kind", "metadata", "spec"},
    "metadata": {"name", "namespace", "labels", "annotations", "ownerReferences"},
    "spec": {
        "replicatedJobs",
        "network",
        "successPolicy",
        "failurePolicy",
        "startupPolicy",
        "suspend",
        "managedBy",
        "ttlSecondsAfterFinished",
    },
    "failurePolicy": {"maxRestarts", "rules"},
    "rule": {"name", "action", "onJobFailureReasons", "targetReplicatedJobs"},
    "replicatedJob": {"name", "template", "replicas"},
}
ACTIONS = {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"}
REASONS = {
    "BackoffLimitExceeded",
    "DeadlineExceeded",
    "FailedIndexes",
    "MaxFailedIndexesExceeded",
    "PodFailurePolicy",
}


def checked(jobset: dict[str, Any]) -> dict[str, Any]:
    """A JobSet that the API would take; 422 for one that it would not."""
    spec = jobset.get("spec", {})
    policy = spec.get("failurePolicy", {})
    parts = [("", jobset), ("metadata", jobset["metadata"]), ("spec", spec), ("failurePolicy", policy)]
    parts += [("rule", rule) for rule in policy.get("rules", [])]
    parts += [("replicatedJob", one) for one in spec["replicatedJobs"]]
    for kind, part in parts:
        if unknown := set(part) - KNOWN[kind]:
            raise Refused(400, f"strict decoding error: unknown field {kind}.{unknown.pop()}")
    for rule in policy.get("rules", []):
        named = re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
        if not named or rule["action"] not in ACTIONS or not set(rule.get("onJobFailureReasons", [])) <= REASONS:
            raise Refused(422, f"invalid failure policy rule {rule}")
    if not isinstance(policy.get("maxRestarts", 0), int):
        raise Refused(422, "spec.failurePolicy.maxRestarts: must be an integer")
    for one in spec["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **one["template"]}
        try:
            kubernetes_validate.validate(job, "1.33", strict=True)
        except kubernetes_validate.ValidationError as error:
            raise Refused(422, f"spec.replicatedJobs: {error.message}") from None
        most = one["template"]["spec"]["completions"] - 1
        longest = f"{jobset['metadata']['name']}-{one['name']}-{one.get('replicas', 1) - 1}-{most}-abcde"
        if len(longest) > 63 or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", longest):
            raise Refused(422, "JobSet name is too long, pod names generated for this JobSet will exceed 63 characters")
        if one["template"]["spec"]["template"]["spec"]["restartPolicy"] != "Never":
            raise Refused(422, "podFailurePolicy needs restartPolicy Never")
    return jobset
