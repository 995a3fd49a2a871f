"""Validates manifests: python kubernetes_schemas.py FILE...  One line for each object, `KIND NAME`
or `KIND NAME: what is wrong`.

Kubernetes' own kinds by its schemas (PyPI: kubernetes-validate), unknown fields are errors. JobSet,
TrainingRuntime and TrainJob by the models of kubeflow-trainer-api, which know names and types; the
Jobs within them by Kubernetes' schemas."""

import sys

import kubernetes_validate
import yaml
from kubeflow_trainer_api import models

VERSION = "1.33"
MODELS = {
    "JobSet": models.JobsetV1alpha2JobSet,
    "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
    "TrainJob": models.TrainerV1alpha1TrainJob,
}


# Between the optional parts of a path the model says `null`, which no field of ours is.
def without_nulls(value):
    if isinstance(value, dict):
        return {key: without_nulls(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list):
        return [without_nulls(entry) for entry in value]
    return value


def missing(given, read, path=""):
    """Fields that are given and that the model did not read: it ignores what it does not know."""
    if isinstance(given, dict) and isinstance(read, dict):
        for key, value in given.items():
            if key not in read:
                yield f"{path}/{key} is unknown"
            else:
                yield from missing(value, read[key], f"{path}/{key}")
    elif isinstance(given, list) and isinstance(read, list):
        for index, (value, other) in enumerate(zip(given, read)):
            yield from missing(value, other, f"{path}/{index}")


def check_kubernetes(document):
    try:
        kubernetes_validate.validate(document, VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield str(error).splitlines()[0]


def jobs(document):
    spec = document.get("spec", {})
    replicated = (
        spec.get("replicatedJobs")
        or spec.get("template", {}).get("spec", {}).get("replicatedJobs")
        or []
    )
    for job in replicated:
        name = {"name": job["name"]}
        yield {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": name,
            "spec": job["template"]["spec"],
        }


def check_model(document, model):
    try:
        read = without_nulls(model.from_dict(document).to_dict())
    except ValueError as error:
        yield " ".join(str(error).split())
        return
    yield from missing(document, read)
    for job in jobs(document):
        yield from check_kubernetes(job)


def main(files):
    failed = False
    for file in files:
        with open(file, encoding="utf-8") as text:
            for document in yaml.safe_load_all(text):
                model = MODELS.get(document["kind"])
                wrong = list(check_model(document, model) if model else check_kubernetes(document))
                failed |= bool(wrong)
                what = f"{document['kind']} {document['metadata']['name']}"
                print(f"{what}: {file}: {'; '.join(wrong)}" if wrong else what)
    sys.exit(failed)


main(sys.argv[1:])
