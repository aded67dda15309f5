"""The S3 that the proxy stands in front of: moto's server with one object, `s3.py PORT [MEGABYTES]`."""
import sys

import boto3
from moto.server import ThreadedMotoServer

PART = b"leakline" * (10 * 1024 * 1024 // 8)

port = int(sys.argv[1])
megabytes = int(sys.argv[2]) if len(sys.argv) > 2 else 250
# A server of its own takes the object in, so that whoever can connect to PORT finds it there: both share one memory.
inbox = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
inbox.start()
s3 = boto3.client(
    "s3", endpoint_url="http://%s:%d" % inbox.get_host_and_port(), region_name="us-east-1",
    aws_access_key_id="key", aws_secret_access_key="secret",
)
s3.create_bucket(Bucket="data")
upload = s3.create_multipart_upload(Bucket="data", Key="object")["UploadId"]
parts = []
for number in range(1, megabytes // 10 + 1):
    part = s3.upload_part(Bucket="data", Key="object", UploadId=upload, PartNumber=number, Body=PART)
    parts.append({"PartNumber": number, "ETag": part["ETag"]})
s3.complete_multipart_upload(Bucket="data", Key="object", UploadId=upload, MultipartUpload={"Parts": parts})

outside = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
outside.start()
outside._thread.join()
