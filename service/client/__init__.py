"""A Viscera service seen from the caller's side: submit a study, follow the job, fetch what it found.

    with Viscera("http://127.0.0.1:8000", api_key=key) as viscera:
        job = viscera.submit([Path("ct.nii.gz")])
        job = viscera.wait(job["id"])
        findings = viscera.findings(job["id"])

Answers are the JSON documents of `openapi.yaml` as typed dictionaries. Uploads and downloads are streamed. The names of
local files, which may carry a patient's name, are not sent.
"""

from service.client.connection import Viscera as Viscera
from service.client.documents import ArtifactDocument as ArtifactDocument
from service.client.documents import JobDocument as JobDocument
from service.client.documents import JobLinksDocument as JobLinksDocument
from service.client.documents import JobPageDocument as JobPageDocument
from service.client.problems import ProblemError as ProblemError
from service.client.problems import UnreachableError as UnreachableError
from service.client.upload import study_files as study_files
