// Decodes framed alerts with avsc: node decode.js schema.json alert... prints one JSON record a line.
// Longs are text, since ids are beyond what a JavaScript number holds; bytes are their SHA-256.
'use strict';
const avsc = require('avsc');
const crypto = require('crypto');
const fs = require('fs');

const long = avsc.types.LongType.__with({
  fromBuffer: (buffer) => buffer.readBigInt64LE(),
  toBuffer: (n) => { const buffer = Buffer.alloc(8); buffer.writeBigInt64LE(n); return buffer; },
  fromJSON: BigInt,
  toJSON: String,
  isValid: (n) => typeof n === 'bigint',
  compare: (a, b) => (a === b ? 0 : a < b ? -1 : 1),
});

function plain(key, value) {
  if (typeof value === 'bigint') return value.toString();
  if (typeof value === 'number' && !Number.isFinite(value)) return String(value);
  if (value && value.type === 'Buffer') return crypto.createHash('sha256').update(Buffer.from(value.data)).digest('hex');
  return value;
}

const [schema, ...alerts] = process.argv.slice(2);
const type = avsc.Type.forSchema(JSON.parse(fs.readFileSync(schema, 'utf8')), { registry: { long }, wrapUnions: false });
for (const name of alerts) {
  const message = fs.readFileSync(name);
  if (message[0] !== 0) throw new Error(`${name} bears no frame`);
  const record = type.fromBuffer(message.subarray(5)); // throws where bytes are left over
  console.log(JSON.stringify({ schemaId: message.readInt32BE(1), record }, plain));
}
