#version 420
#include "light.glsl"
#include "strand.glsl"

// Drawn where an earlier pass left this very depth, so that each pixel is shaded once.
layout(early_fragment_tests) in;

in vec3 at;
in vec3 direction;
in vec4 in_light;
in vec4 on_strand;

uniform vec3 hair_colour;
uniform vec3 sheen_colour;
uniform vec3 centre;  // of the hair: it is lit as a ball with threads on it

out vec4 colour;

// Kajiya and Kay (1989): the highlight of a thread.
float thread(vec3 along, vec3 halfway, float power) {
    float d = dot(along, halfway);
    return pow(max(1.0 - d * d, 0.0), power * 0.5);
}

float across(vec3 along, vec3 light) {
    return sqrt(max(1.0 - pow(dot(along, light), 2.0), 0.0));
}

void main() {
    float shade = on_strand.x + 0.55 * hairs(on_strand);
    vec3 view = normalize(camera - at);
    vec3 along = normalize(direction);
    vec3 n = normalize(at - centre);
    n = normalize(n - along * dot(n, along) * 0.7);
    float lit = key_visible(in_light, 0.012);
    vec3 albedo = hair_colour * max(1.0 + 0.17 * shade, 0.35) + sheen_colour * max(shade, 0.0) * 0.10;
    albedo *= mix(0.75, 1.08, on_strand.z);
    float key = max(dot(n, key_direction) * 0.6 + 0.4, 0.0);
    float fill = max(dot(n, fill_direction) * 0.6 + 0.4, 0.0);
    float rim = max(dot(n, rim_direction) * 0.6 + 0.4, 0.0);

    // Marschner's two highlights: white towards the tip, coloured towards the root.
    float jitter = 0.06 * shade;
    vec3 outer = normalize(along + n * (-0.08 + jitter));
    vec3 inner = normalize(along + n * (0.10 + jitter));
    vec3 halfway = normalize(key_direction + view);
    vec3 specular = key_colour * key * lit * (0.11 * thread(outer, halfway, 90.0) + albedo * 1.6 * thread(inner, halfway, 28.0));
    halfway = normalize(fill_direction + view);
    specular += fill_colour * fill * (0.07 * thread(outer, halfway, 90.0) + albedo * 1.2 * thread(inner, halfway, 28.0));
    halfway = normalize(rim_direction + view);
    specular += rim_colour * rim * (0.10 * thread(outer, halfway, 60.0) + albedo * 1.8 * thread(inner, halfway, 18.0));

    vec3 diffuse = key_colour * key * across(along, key_direction) * mix(0.25, 1.0, lit);
    diffuse += fill_colour * fill * across(along, fill_direction);
    diffuse += rim_colour * rim * across(along, rim_direction) * 0.8;
    diffuse += ambient(n) * 1.1;
    colour = vec4(tone_mapped((albedo * diffuse * 0.85 + specular) * on_strand.y), 1.0);
}
