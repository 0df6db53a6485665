#version 330
#include "pose.glsl"

in vec3 place;   // on a strand's middle line
in vec3 along;   // the strand's direction
in vec4 strand;  // signed half width; shade of colour; how open to the sky; 0 at the root to 1 at the tip

uniform int vertices;  // of a strand

out vec3 at;
out vec3 direction;
out vec4 in_light;
out vec4 on_strand;     // shade, openness, root to tip, side
flat out float number;  // of the strand, from 1

// The same depth in every pass: the last one draws where depths are equal.
invariant gl_Position;

void main() {
    float share = smoothstep(5.6, 6.6, place.y);  // long hair rests on the shoulders
    vec3 middle = posed(place, share);
    direction = posed_normal(along, share);
    vec3 view = normalize(vec3(0.0, 7.0, 18.0) - middle);
    at = middle + normalize(cross(direction, view)) * strand.x;
    on_strand = vec4(strand.yzw, sign(strand.x));
    number = float(gl_VertexID / vertices + 1);
    in_light = light_projection * vec4(at, 1.0);
    gl_Position = view_projection * vec4(at, 1.0);
}
