"""What KubeRay and Kubernetes take, as far as our files go: strict, so that a misspelt key fails.

Written from the field names of KubeRay's API types (RayCluster, RayJob of ray.io/v1) and of
Kubernetes' (CronJob of batch/v1, pods of v1). Not the published schemas, which are of a megabyte
each.
"""

from __future__ import annotations

from typing import Any

TEXT: dict[str, Any] = {"type": "string"}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
FLAG: dict[str, Any] = {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"}
QUANTITIES = {"type": "object", "additionalProperties": QUANTITY}


def thing(needs: str = "", **keys: Any) -> dict[str, Any]:
    """Return the schema of an object with these keys and no others."""
    return {
        "type": "object",
        "properties": keys,
        "required": needs.split(),
        "additionalProperties": False,
    }


def many(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of, "minItems": 1}


def one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


META = thing(name=TEXT, generateName=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS)
ENV = thing(
    "name", name=TEXT, value=TEXT,
    valueFrom=thing(secretKeyRef=thing("name key", name=TEXT, key=TEXT, optional=FLAG)),
)  # fmt: skip
CONTAINER = thing(
    "name image", name=TEXT, image=TEXT, imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
    command=many(TEXT), args=many(TEXT), env=many(ENV), workingDir=TEXT,
    resources=thing(requests=QUANTITIES, limits=QUANTITIES),
    volumeMounts=many(thing("name mountPath", name=TEXT, mountPath=TEXT, readOnly=FLAG)),
)  # fmt: skip
POD = thing(
    "spec", metadata=META,
    spec=thing(
        "containers", containers=many(CONTAINER), serviceAccountName=TEXT, nodeSelector=TEXTS,
        restartPolicy=one_of("Always", "OnFailure", "Never"),
        tolerations=many(thing(key=TEXT, operator=one_of("Exists", "Equal"), value=TEXT,
                               effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute"))),
        volumes=many({"type": "object", "required": ["name"]}),
        terminationGracePeriodSeconds=COUNT,
    ),
)  # fmt: skip
RAY_CLUSTER = thing(
    "headGroupSpec", rayVersion=TEXT, enableInTreeAutoscaling=FLAG, suspend=FLAG,
    authOptions=thing(mode=one_of("token", "disabled")),
    autoscalerOptions=thing(idleTimeoutSeconds=COUNT,
                            upscalingMode=one_of("Default", "Aggressive", "Conservative")),
    headGroupSpec=thing("template", serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer"),
                        enableIngress=FLAG, rayStartParams=TEXTS, template=POD),
    workerGroupSpecs=many(thing(
        "groupName minReplicas maxReplicas template", groupName=TEXT, replicas=COUNT,
        minReplicas=COUNT, maxReplicas=COUNT, numOfHosts=COUNT, rayStartParams=TEXTS, template=POD,
    )),
)  # fmt: skip
RAY_JOB = thing(
    "entrypoint rayClusterSpec", entrypoint=TEXT, runtimeEnvYAML=TEXT, jobId=TEXT, suspend=FLAG,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode"), backoffLimit=COUNT,
    activeDeadlineSeconds=COUNT, ttlSecondsAfterFinished=COUNT, shutdownAfterJobFinishes=FLAG,
    entrypointNumCpus={"type": "number"}, entrypointNumGpus={"const": 0}, metadata=TEXTS,
    rayClusterSpec=RAY_CLUSTER,
)  # fmt: skip
CRON_JOB = thing(
    "schedule jobTemplate", schedule=TEXT, timeZone=TEXT, suspend=FLAG,
    concurrencyPolicy=one_of("Allow", "Forbid", "Replace"), startingDeadlineSeconds=COUNT,
    successfulJobsHistoryLimit=COUNT, failedJobsHistoryLimit=COUNT,
    jobTemplate=thing("spec", metadata=META, spec=thing(
        "template", backoffLimit=COUNT, activeDeadlineSeconds=COUNT,
        ttlSecondsAfterFinished=COUNT, template=POD,
    )),
)  # fmt: skip
SPECS = {
    ("ray.io/v1", "RayCluster"): RAY_CLUSTER,
    ("ray.io/v1", "RayJob"): RAY_JOB,
    ("batch/v1", "CronJob"): CRON_JOB,
}


def check(document: dict[str, Any]) -> None:
    """Raise jsonschema's ValidationError unless Kubernetes would take the document."""
    import jsonschema

    kind = (document.get("apiVersion"), document.get("kind"))
    if kind not in SPECS:
        raise jsonschema.ValidationError(f"{kind} is none of {list(SPECS)}")
    whole = thing("apiVersion kind metadata spec", apiVersion=TEXT, kind=TEXT, metadata=META,
                  spec=SPECS[kind])  # type: ignore[index]  # fmt: skip
    jsonschema.validate(document, whole)
